"""The database of results: a record comes back as it went in; other files are refused."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fewstep.errors import FolderError
from fewstep.measure.database import COLUMNS, JSON, Record, Results, key_of, what_changed


def record(w: float) -> Record:
    asked = {"w": w, "seed": 0}
    texts = {c: "x" for c, kind in COLUMNS.items() if kind.startswith("TEXT")}
    numbers = {c: 1 for c in COLUMNS if c not in texts}
    more = {"key": key_of(asked), "asked": asked, "figures": {"fd_x": 1 / 3, "score": None}}
    return Record(**{**texts, **numbers, **more, "w": w, "versions": {"torch": "2"}})


def test_a_record_comes_back_as_it_went_in(tmp_path: Path) -> None:
    results = Results(tmp_path / "a" / "results.sqlite")
    assert results.records() == []
    assert results.get("x") is None
    results.put(record(0.0))
    results.put(record(1.5))
    results.put(record(1.5))
    assert results.records() == [record(0.0), record(1.5)]
    assert Results(results.path).get(key_of({"seed": 0, "w": 1.5})) == record(1.5)
    assert results.get("nothing") is None


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    path.write_text("no database at all, but long enough to be looked at" * 40)
    with pytest.raises(FolderError, match=r"results.sqlite cannot be used"):
        Results(path).get("x")


def test_a_file_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """Its records have no reasons, and stay as they are."""
    path = tmp_path / "results.sqlite"
    old = [c for c in COLUMNS if c != "missing"]
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"CREATE TABLE cells ({', '.join(f'{c} {COLUMNS[c]}' for c in old)})")
        values = [json.dumps({"x": 1}) if c in JSON else "y" for c in old]
        db.execute(f"INSERT INTO cells VALUES ({', '.join('?' * len(old))})", values)
    results = Results(path)
    results.check()
    results.put(record(1.0))
    first, second = results.records()
    assert (first.model, first.figures, first.missing) == ("y", {"x": 1}, {})
    assert second == record(1.0)


def test_what_changed_is_named_by_its_cause() -> None:
    before = {"data": "a", "weights": "b", "teacher": "c", "samples": 8}
    assert what_changed(None, before) == ""
    assert what_changed(before, before) == ""
    said = what_changed(before, {**before, "data": "d", "teacher": "e"})
    assert said == " (measured again: the training images changed)"
    said = what_changed(before, {**before, "teacher": "e"})
    assert said == " (measured again: the teacher changed)"
    assert "the weights of the model, the clock" in what_changed(
        before, {**before, "weights": "z", "clock": ["native"]}
    )
