"""The metadata of image folders: metadata.jsonl, .csv or .parquet with a row for each image."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewstep.data.text import read_text
from fewstep.errors import DataError

FILE_NAME = "file_name"
LARGEST = 1 << 32  # bytes


def read_metadata(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows of a metadata file, each with what messages call it.

    Raises DataError: no rows, a row without `file_name`, or not what its suffix says.
    """
    suffix = path.suffix.lower()
    rows = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[suffix](path)
    found = []
    for where, row in rows:
        if not isinstance(row.get(FILE_NAME), str) or not row[FILE_NAME]:
            raise DataError(
                f"{where} has no {FILE_NAME}, the path of its image beside {path.name}. Its keys "
                f"are {', '.join(map(str, row)) or 'none'}."
            )
        found.append((where, row))
    if not found:
        raise DataError(
            f"{path} holds no rows. Give a row for each image, with {FILE_NAME} and text or label, "
            "or remove the file."
        )
    return found


def _jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(read_text(path, LARGEST).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{where} is not JSON. Write one object per line.") from None
        if not isinstance(row, dict):
            raise DataError(f"{where} is not a JSON object. Write one object per line.")
        yield where, row


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(read_text(path, LARGEST), newline=""))
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            yield where, {str(k): v for k, v in row.items() if k is not None}
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is not CSV: {error}.") from None


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.ParquetFile(path).read().to_pylist()
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} is not a complete parquet file: {first}. Copy it again.") from None
    for number, row in enumerate(rows):
        yield f"{path}, row {number}", row
