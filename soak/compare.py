"""Compare what two runs of a command have made, bit for bit but for clocks and memory."""

from __future__ import annotations

import csv
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

# What a clock or the machine's memory says differs from run to run.
VOLATILE = ("seconds", "memory", "created", "per_second", "total time")
# Written from the others, with clocks in them; or by libraries, under names with clocks in them.
SKIPPED_SUFFIXES = {".html", ".md", ".svg"}
SKIPPED_FOLDERS = {"tensorboard"}


def differences(a: Path, b: Path) -> list[str]:
    """Return in words where folder b differs from folder a; nothing where it does not."""
    names_a, names_b = _names(a), _names(b)
    found = [f"{name} is missing" for name in sorted(names_a - names_b)]
    found += [f"{name} is not expected" for name in sorted(names_b - names_a)]
    for name in sorted(names_a & names_b):
        path_a, path_b = a / name, b / name
        if path_a.read_bytes() == path_b.read_bytes():
            continue
        one, other = _content(path_a), _content(path_b)
        if one != other:
            found.append(f"{name} differs{_where(one, other)}")
    return found


def _where(a: Any, b: Any) -> str:
    """Return the keys of the first difference, and its values where they are short."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [k for k in sorted({*a, *b}, key=str) if a.get(k) != b.get(k)]
        return f" .{keys[0]}" + _where(a.get(keys[0]), b.get(keys[0]))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        place = next(k for k in range(len(a)) if a[k] != b[k])
        return f" [{place}]" + _where(a[place], b[place])
    shown = f": {a!r} and {b!r}"
    return shown if len(shown) < 200 else ""


def _names(folder: Path) -> set[str]:
    files = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    kept = (p for p in files if not SKIPPED_FOLDERS & set(p.parts) and not _is_older(folder / p))
    return {str(p) for p in kept if not any(word in p.name for word in VOLATILE)}


def _is_older(path: Path) -> bool:
    """Whether it is of a checkpoint that is not the newest; which of those stay is history."""
    if path.parent.parent.name != "checkpoints":
        return False
    newest = max(p.name for p in path.parent.parent.iterdir() if p.name.isdigit())
    return path.parent.name != newest


def _content(path: Path) -> Any:
    """Return all of a file that must be the same."""
    text = path.suffix in (".json", ".jsonl", ".csv")
    if path.suffix in SKIPPED_SUFFIXES:
        return None
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            names = sorted(file.keys())
            tensors = [(n, file.get_tensor(n).numpy().tobytes()) for n in names]
            return _steady(file.metadata() or {}), tensors
    if path.suffix == ".pt":
        return _numbers(torch.load(path, weights_only=True))
    if path.suffix == ".sqlite":
        return _rows(path)
    if not text:
        return path.read_bytes()
    if path.suffix == ".csv":
        with path.open(newline="") as table:
            return [_steady(row) for row in csv.DictReader(table)]
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    return [_steady(json.loads(line)) for line in lines]


def _steady(value: Any) -> Any:
    """Return JSON without what a clock or the machine says."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not any(w in k for w in VOLATILE)}
        return {k: _steady(v) for k, v in kept.items()}
    if isinstance(value, list):
        return [_steady(v) for v in value]
    return value


def _numbers(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(v) for v in value]
    return value


def _rows(path: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        (*tables,) = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        rows = [
            _steady(dict(row))
            for (table,) in map(tuple, tables)
            for row in database.execute(f"SELECT * FROM {table}")
        ]
    return sorted(rows, key=repr)
