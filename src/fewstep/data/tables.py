"""Tables of images: parquet files, and the arrow files of `datasets.Dataset.save_to_disk`."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.data.columns import Column, Kind, image_column, label_column
from fewstep.data.config import DataConfig
from fewstep.data.decode import Record
from fewstep.data.found import Records
from fewstep.data.listing import TRAIN
from fewstep.data.text import read_text
from fewstep.errors import DataError

ROWS = 32  # read at a time


class TableFile(NamedTuple):
    """One file of a table and what its columns hold. names: declared names of each class column."""

    file: Path
    rows: int
    kinds: dict[str, Kind]
    names: dict[str, tuple[str, ...]]


def open_table(file: Path) -> TableFile:
    """Return what a parquet or arrow file holds; no row is read.

    Raises DataError where it is not a whole file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if is_arrow(file):
            with pa.memory_map(str(file)) as mapped:
                reader = pa.ipc.open_stream(mapped)
                return _table(file, sum(b.num_rows for b in reader), reader.schema)
        opened = pq.ParquetFile(file)
        return _table(file, opened.metadata.num_rows, opened.schema_arrow)
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        raise _damaged(file, error) from None


def is_arrow(file: Path) -> bool:
    """Return whether a file is one of `save_to_disk`, and not parquet."""
    return file.suffix.lower() == ".arrow"


def _damaged(file: Path, error: Exception) -> DataError:
    kind = "arrow" if is_arrow(file) else "parquet"
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(f"{file} is not a complete {kind} file: {first}. Write or copy it again.")


def _table(file: Path, rows: int, schema: Any) -> TableFile:
    declared = _features(schema)
    kinds: dict[str, Kind] = {}
    names: dict[str, tuple[str, ...]] = {}
    for column in schema:
        if column.name in kinds:
            raise DataError(f"{file} has two columns called {column.name!r}. Rename one of them.")
        feature = declared.get(column.name)
        feature = feature if isinstance(feature, dict) else {}
        kinds[column.name] = _kind(column.type, feature)
        if kinds[column.name] is Kind.CLASS:
            names[column.name] = tuple(feature["names"])
    return TableFile(file, rows, kinds, names)


def _features(schema: Any) -> dict[str, Any]:
    """Return what `datasets` wrote about the columns: that one is an image, or has class names."""
    try:
        declared = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = declared["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _kind(kind: Any, feature: dict[str, Any]) -> Kind:
    import pyarrow as pa

    types = pa.types
    names = feature.get("names")
    if feature.get("_type") == "ClassLabel" and types.is_integer(kind) and _are_names(names):
        return Kind.CLASS
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return Kind.IMAGE
    if _is_binary(kind):
        return Kind.IMAGE
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind):
        return Kind.IMAGE if feature.get("_type") == "Image" else Kind.TEXT
    if (types.is_list(kind) or types.is_large_list(kind)) and (
        types.is_string(kind.value_type) or types.is_large_string(kind.value_type)
    ):
        return Kind.TEXTS
    return Kind.OTHER


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _are_names(names: Any) -> bool:
    return isinstance(names, list) and bool(names) and all(isinstance(n, str) for n in names)


class Chosen(NamedTuple):
    """The columns that are read. class_names: () where labels are names or plain numbers."""

    image: str
    label: Column
    class_names: tuple[str, ...]

    @property
    def words(self) -> str:
        """The columns, as a message has them."""
        kind = "captions" if self.label.captions else "classes"
        return f"images from column {self.image!r}, {kind} from column {self.label.name!r}"


def choose_columns(tables: Sequence[TableFile], config: DataConfig, where: Path) -> Chosen:
    """Return the columns to read, the same in all files.

    Raises DataError where there are none, no rows, or a file without them.
    """
    if not sum(t.rows for t in tables):
        raise DataError(f"{where} has no rows. Give a table with images in it.")
    first = tables[0]
    image = image_column(first.kinds, config, str(first.file))
    label = label_column(first.kinds, config, str(first.file))
    for table in tables:
        for name in (image, label.name):
            if table.kinds.get(name) is not first.kinds[name]:
                raise DataError(
                    f"{table.file} has no column {name!r} like that of {first.file}; its columns "
                    f"are {', '.join(table.kinds)}. Give files with the same columns."
                )
            if table.names.get(name) != first.names.get(name):
                raise DataError(
                    f"{table.file} and {first.file} declare other class names for column {name!r}. "
                    "Give files with the same classes."
                )
    return Chosen(image, label, first.names.get(label.name, ()))


def open_tables(
    path: Path, files: Sequence[Path], config: DataConfig, left_out: Counter[str]
) -> Records:
    """Return the records of table files, in their order; no image is read yet.

    path: what the user gave. Raises DataError as `open_table` and `choose_columns` do.
    """
    tables = [open_table(f) for f in files]
    chosen = choose_columns(tables, config, path)
    depends = [(inside(f, path), f) for f in files]
    for table in tables:
        depends += list(_paths_in(table, chosen.image))
    return Records(
        path=path,
        class_names=chosen.class_names,
        captions=chosen.label.captions,
        columns=chosen.words,
        unit="rows",
        seen=sum(t.rows for t in tables),
        left_out=left_out,
        files=depends,
        read=partial(_records, tables, chosen),
    )


def inside(file: Path, path: Path) -> str:
    """Return the name of a file within what the user gave."""
    return file.relative_to(path).as_posix() if file.is_relative_to(path) else file.name


def _records(tables: Sequence[TableFile], chosen: Chosen) -> Iterator[Record]:
    for table in tables:
        rows = rows_of(table.file, [chosen.image, chosen.label.name])
        for row, (image, label) in enumerate(rows):
            where = f"{table.file}, row {row}"
            yield image_record(image, table.file.parent, where, label)


def rows_of(file: Path, columns: list[str], size: int = ROWS) -> Iterator[tuple[Any, ...]]:
    """Yield the values of columns, row by row, of which `size` are in memory at a time.

    Raises DataError for a damaged file.
    """
    import pyarrow as pa

    try:
        for batch in _batches(file, columns, size):
            yield from zip(*(batch.column(c).to_pylist() for c in columns), strict=True)
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        raise _damaged(file, error) from None


def _batches(file: Path, columns: list[str], size: int) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not is_arrow(file):
        yield from pq.ParquetFile(file).iter_batches(batch_size=size, columns=columns)
        return
    with pa.memory_map(str(file)) as mapped:
        for batch in pa.ipc.open_stream(mapped):
            for first in range(0, batch.num_rows, size):
                yield batch.select(columns).slice(first, size)


def image_record(value: Any, folder: Path, where: str, label: Any = None) -> Record:
    """Return the record of one cell of an image column: bytes, a path, or {bytes, path}.

    folder: that relative paths begin in. What is wrong with a cell is in the record's problem.
    """
    data = value.get("bytes") if isinstance(value, dict) else value
    path = value.get("path") if isinstance(value, dict) else value
    if isinstance(data, bytes) and data:
        return Record(where, data, label)
    if not isinstance(path, str) or not path:
        return Record(where, b"", label, f"{where} has no image.")
    if "://" in path:
        problem = f"{where} has no image bytes but the path {path!r}, and nothing is fetched."
        return Record(where, b"", label, problem)
    inside = os.path.normpath(path)
    if not os.path.isabs(inside) and inside.split(os.sep)[0] == os.pardir:
        problem = f"{where} has no image bytes but the path {path!r}, which leaves {folder}."
        return Record(where, b"", label, problem)
    file = folder / inside
    try:
        there = file.is_file()
    except (OSError, ValueError):
        there = False
    if not there:
        problem = (
            f"{where} has no image bytes but the path {path!r}, and there is no such file in "
            f"{folder}. Move the table beside its images, or write the bytes into it."
        )
        return Record(where, b"", label, problem)
    return Record(f"{where} ({file})", str(file), label)


def _paths_in(table: TableFile, column: str) -> Iterator[tuple[str, Path]]:
    """Yield the files that the cells of an image column name in place of bytes."""
    if not _may_name_paths(table.file, column):
        return
    for (value,) in rows_of(table.file, [column]):
        path = value.get("path") if isinstance(value, dict) else value
        record = image_record(value, table.file.parent, "")
        if isinstance(record.data, str):
            yield str(path), Path(record.data)


def _may_name_paths(file: Path, column: str) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if is_arrow(file):
        with pa.memory_map(str(file)) as mapped:
            return not _is_binary(pa.ipc.open_stream(mapped).schema.field(column).type)
    opened = pq.ParquetFile(file)
    kind = opened.schema_arrow.field(column).type
    if not pa.types.is_struct(kind):
        return not _is_binary(kind)
    for g in range(opened.metadata.num_row_groups):
        group = opened.metadata.row_group(g)
        leaves = [group.column(i) for i in range(group.num_columns)]
        stats = [c.statistics for c in leaves if c.path_in_schema == f"{column}.bytes"]
        if not stats or stats[0] is None or not stats[0].has_null_count or stats[0].null_count:
            return True
    return False


def saved_tables(path: Path) -> list[Path]:
    """Return the arrow files of a folder that `datasets` saved: those of `train`, of several.

    Raises DataError where its JSON files are not what `save_to_disk` writes.
    """
    folder = path
    if (path / "dataset_dict.json").is_file():
        splits = _json(path / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not splits or not all(_is_name(s) for s in splits):
            raise _not_saved(path / "dataset_dict.json", "splits")
        train = [s for s in splits if s.casefold() in TRAIN]
        if len(splits) > 1 and not train:
            raise DataError(
                f"{path} has the splits {', '.join(splits)}, and none of them is called train. "
                "Give the folder of one."
            )
        folder = path / (train or splits)[0]
    files = _json(folder / "state.json").get("_data_files")
    files = files if isinstance(files, list) else []
    names = [f.get("filename") if isinstance(f, dict) else None for f in files]
    if not names or not all(_is_name(n) for n in names):
        raise _not_saved(folder / "state.json", "_data_files")
    return [folder / str(n) for n in names]


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _not_saved(path, "an object")
    return found


def _not_saved(path: Path, what: str) -> DataError:
    return DataError(
        f"{path} is not what datasets' save_to_disk writes ({what} is missing or of another kind). "
        "Save the table again, or give a parquet file."
    )
