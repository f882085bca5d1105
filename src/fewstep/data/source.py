"""Images with labels from whatever lies on the disk, one at a time, one schema."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fewstep.data.config import DataConfig
from fewstep.data.decode import Record, decode
from fewstep.data.folders import open_images
from fewstep.data.found import Records
from fewstep.data.listing import (
    ARCHIVES,
    TABLES,
    Listing,
    count_others,
    kind_of,
    list_folder,
    training_tables,
)
from fewstep.data.tables import open_tables, saved_tables
from fewstep.errors import DataError

WANTED = (
    "Give a parquet file, a folder with a folder of images for each class, or a folder of images "
    "with captions"
)


def open_source(path: Path, config: DataConfig | None = None) -> Records:
    """Open a parquet file, a folder of images or of parquet files, or one that `datasets` saved.

    No image is read yet, and nothing is fetched: the path must be on the disk. config: which
    columns are read.

    Raises DataError: no such path, nothing to read in it, or no column of images or of labels.
    """
    config = config or DataConfig(name=str(path))
    kind = kind_of(path)
    if kind is None:
        raise DataError(
            f"{path} is neither a data set that comes with fewstep nor a file or folder here; "
            f"nothing is fetched. {WANTED}."
        )
    files, left_out = table_files(path)
    if files:
        return open_tables(path, files, config, left_out)
    listing = list_folder(path)
    if not listing.images:
        raise _nothing(path, listing)
    return open_images(listing, config)


def table_files(path: Path) -> tuple[list[Path], Counter[str]]:
    """Return the table files of a path and what was left out; none for a folder of images.

    Raises DataError for a file that is no table, and as `training_tables` and `saved_tables` do.
    """
    if kind_of(path) == "file":
        if path.suffix.lower() not in TABLES:
            raise DataError(_no_table(path))
        return [path], Counter()
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return saved_tables(path), Counter()
    listing = list_folder(path)
    if listing.tables:
        chosen = set(training_tables(listing))
        known = set(listing.tables)
        count_others(listing, lambda f: f in known)
        return [path / f for f in listing.tables if f in chosen], listing.left_out
    return [], Counter()


def _no_table(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in ARCHIVES:
        return f"{path} is an archive. {_unpack(path)}"
    if suffix == ".txt":
        return (
            f"{path}: a file must be parquet, not .txt. A file of prompts is for recipes with "
            f"`latents:` and cond: prompt. {WANTED}."
        )
    return f"{path}: a file must be parquet, not {suffix or path.name}. {WANTED}."


def _nothing(path: Path, listing: Listing) -> DataError:
    if listing.archives:
        first = listing.archives[0]
        return DataError(
            f"{path} holds archives ({first}, {len(listing.archives)} in all), and archives are "
            f"not opened. {_unpack(path / first)}"
        )
    kinds = Counter(f.suffix.lower() or f.name for f in listing.files)
    there = ", ".join(k for k, _ in kinds.most_common(5)) or "nothing"
    return DataError(f"{path} holds nothing that can be read as images ({there}). {WANTED}.")


def _unpack(archive: Path) -> str:
    if ".tar" in archive.suffixes or archive.suffix.lower() in (".tar", ".tgz"):
        return (
            f"Unpack it (mkdir images; tar -xf {archive.name} -C images) and give the folder: of "
            "WebDataset's tar files, images with a .txt beside each are read as they are."
        )
    return f"Unpack it (unzip {archive.name} -d images) and give the folder."


__all__ = ["Record", "Records", "decode", "open_source", "table_files"]
