"""The database of results: one row a measured cell, appended to one SQLite file.

A row's key is the hash of everything that its figures depend on: the model's weights, the
sampler, steps and w, the noise, the data and the features. The same question finds its answer
there; another question gets a row of its own, so that a file can hold many studies.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from fewstep.errors import FolderError

Row = dict[str, Any]
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
    "asked": "TEXT NOT NULL",
    "versions": "TEXT NOT NULL",
    "device": "TEXT",
}


def key_of(asked: Row) -> str:
    """Return the key of a cell: the sha256, in hex, of what was asked."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class Results:
    """The rows of one file, made when the first is written."""

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is opened yet."""
        self.path = path

    def get(self, key: str) -> Row | None:
        """Return the row of a cell, figures and all, or None where it was not measured.

        Raises FolderError where the file is no database of results.
        """
        if not self.path.is_file():
            return None
        with self._open() as db:
            found = db.execute("SELECT * FROM cells WHERE key = ?", (key,)).fetchone()
        return None if found is None else _plain(found)

    def rows(self) -> list[Row]:
        """Return all rows, oldest first; none where there is no file."""
        if not self.path.is_file():
            return []
        with self._open() as db:
            return [_plain(r) for r in db.execute("SELECT * FROM cells ORDER BY rowid")]

    def put(self, row: Row) -> None:
        """Write a row, whole; one of the same key is replaced."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        values = [
            json.dumps(row[c], sort_keys=True) if c in ("figures", "asked", "versions") else row[c]
            for c in COLUMNS
        ]
        marks = ", ".join("?" * len(COLUMNS))
        with self._open() as db:
            db.execute(f"INSERT OR REPLACE INTO cells VALUES ({marks})", values)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            # Another process may be writing its own cell; a row takes it a moment.
            with closing(sqlite3.connect(self.path, timeout=60)) as db, db:
                db.row_factory = sqlite3.Row
                columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
                db.execute(f"CREATE TABLE IF NOT EXISTS cells ({columns})")
                yield db
        except sqlite3.Error as error:
            raise FolderError(
                f"{self.path} cannot be used as a database of results ({error}). Give another "
                "--out, or move the file away."
            ) from None


def _plain(found: sqlite3.Row) -> Row:
    row: Row = dict(found)
    for c in ("figures", "asked", "versions"):
        row[c] = json.loads(row[c])
    return row
