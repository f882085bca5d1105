"""The database of results: one record per measured cell, appended to one SQLite file.

A record's key is the hash of everything that its figures depend on: the model and its weights,
clock and guidance, the sampler, steps and w, the noise, the conditions, the data and the features.
A cell that was measured before is found by its key; any other cell gets a record of its own, so
that a file can hold many studies.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fewstep.atomic import json_sha256
from fewstep.errors import FolderError

# Everything that the figures of a cell depend on, as plain JSON values.
Inputs = dict[str, Any]
COLUMNS = {
    "key": "TEXT PRIMARY KEY",
    "created": "TEXT NOT NULL",
    "model": "TEXT NOT NULL",
    "weights_sha256": "TEXT",
    "sampler": "TEXT",
    "steps": "INTEGER",
    "evaluations": "INTEGER",
    "w": "REAL",
    "samples": "INTEGER",
    "seed": "INTEGER",
    "data": "TEXT",
    "data_sha256": "TEXT",
    "features": "TEXT",
    "features_sha256": "TEXT",
    "seconds_per_image": "REAL",
    "images_per_second": "REAL",
    "figures": "TEXT NOT NULL",
    "missing": "TEXT NOT NULL DEFAULT '{}'",
    "asked": "TEXT NOT NULL",
    "versions": "TEXT NOT NULL",
    "device": "TEXT",
}
JSON = ("figures", "missing", "asked", "versions")
# Parts of a cell's key, in words; the first that changed is the cause of the others.
WORDS = {
    "data": "the training images",
    "features": "the features",
    "samples": "the number of samples",
    "seed": "the seed",
    "weights": "the weights of the model",
    "base": "the base of the adapter",
    "encoders": "the autoencoder or the text encoders",
    "clock": "the clock of the model",
    "prediction": "the prediction of the model",
    "guidance": "the unconditional pass",
    "card": "the card of the model",
    "condition": "the captions",
    "paired": "the form of paired images",
    "teacher": "the teacher",
}


@dataclass(frozen=True)
class Record:
    """A measured cell as the database keeps it.

    Attributes:
        key: `key_of` its inputs.
        created: date and time in UTC.
        model, sampler, steps, w: what was measured; None where there is no such thing.
        evaluations: of the network, per image.
        weights_sha256, data_sha256, features_sha256: of the model, the images, the features.
        samples, seed: number of images, and seed of their noise.
        data, features: names.
        seconds_per_image, images_per_second: what drawing took.
        figures: under the names of tables; None where a figure could not be measured.
        missing: the reason of each figure that is None.
        asked: the inputs.
        versions, device: what it was measured with.
    """

    key: str
    created: str
    model: str
    weights_sha256: str | None
    sampler: str | None
    steps: int | None
    evaluations: int
    w: float | None
    samples: int | None
    seed: int | None
    data: str | None
    data_sha256: str | None
    features: str | None
    features_sha256: str | None
    seconds_per_image: float | None
    images_per_second: float | None
    figures: Mapping[str, float | None]
    asked: Inputs
    versions: Mapping[str, str]
    device: str | None
    missing: Mapping[str, str] = field(default_factory=dict)


def key_of(inputs: Inputs) -> str:
    """Return the key of a cell: the sha256, in hex, of everything that it depends on."""
    return json_sha256(inputs)


def what_changed(before: Inputs | None, inputs: Inputs) -> str:
    """Return in words why a cell is measured again, " (measured again: ...)", or "".

    before: what an earlier cell of the same model, sampler, steps and w depended on.
    """
    if before is None:
        return ""
    plain = json.loads(json.dumps(inputs))
    changed = [words for key, words in WORDS.items() if before.get(key) != plain.get(key)]
    if len(changed) > 1 and changed[-1] == WORDS["teacher"]:
        changed.pop()  # its own cell has another key for the same reason
    return f" (measured again: {', '.join(changed)} changed)" if changed else ""


class Results:
    """The records of one file, which is created with the first record."""

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is opened yet."""
        self.path = path

    def get(self, key: str) -> Record | None:
        """Return the record of a cell, or None where it was not measured.

        Raises FolderError where the file is no database of results.
        """
        if not self.path.is_file():
            return None
        with self._open() as db:
            found = db.execute("SELECT * FROM cells WHERE key = ?", (key,)).fetchone()
        return None if found is None else _record(found)

    def records(self) -> list[Record]:
        """Return all records, oldest first; none where there is no file."""
        if not self.path.is_file():
            return []
        with self._open() as db:
            return [_record(r) for r in db.execute("SELECT * FROM cells ORDER BY rowid")]

    def like(self, model: str, inputs: Inputs) -> Inputs | None:
        """Return what the newest cell of the same model, sampler, steps and w depended on.

        None where there is none.
        """
        if not self.path.is_file():
            return None
        with self._open() as db:
            found = db.execute(
                "SELECT asked FROM cells WHERE model = ? AND sampler IS ? AND steps IS ? "
                "AND w IS ? ORDER BY rowid DESC LIMIT 1",
                (model, inputs["sampler"], inputs["steps"], inputs["w"]),
            ).fetchone()
        return None if found is None else dict(json.loads(found[0]))

    def put(self, record: Record) -> None:
        """Write a record; one of the same key is replaced."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        plain = asdict(record)
        values = [json.dumps(plain[c], sort_keys=True) if c in JSON else plain[c] for c in COLUMNS]
        names, marks = ", ".join(COLUMNS), ", ".join("?" * len(COLUMNS))
        with self._open() as db:
            db.execute(f"INSERT OR REPLACE INTO cells ({names}) VALUES ({marks})", values)

    def check(self) -> None:
        """Raise FolderError where there is a file and it is not a database of results."""
        if self.path.exists():
            with self._open() as db:
                db.execute("SELECT key FROM cells LIMIT 1").fetchone()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            # Another process may be writing its own cell, which takes a moment.
            with closing(sqlite3.connect(self.path, timeout=60)) as db, db:
                db.row_factory = sqlite3.Row
                columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
                db.execute(f"CREATE TABLE IF NOT EXISTS cells ({columns})")
                there = {found[1] for found in db.execute("PRAGMA table_info(cells)")}
                for name in COLUMNS.keys() - there:  # written by an earlier version
                    db.execute(f"ALTER TABLE cells ADD COLUMN {name} {COLUMNS[name]}")
                yield db
        except sqlite3.Error as error:
            raise FolderError(
                f"{self.path} cannot be used: it must be a database of results ({error}). Use "
                "another --out, or move the file away."
            ) from None


def _record(found: sqlite3.Row) -> Record:
    columns = {name: found[name] for name in COLUMNS}
    return Record(**{k: json.loads(v) if k in JSON else v for k, v in columns.items()})
