"""Images with labels from whatever lies on the disk, one at a time, one schema."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.data.decode import Record, decode
from fewstep.errors import DataError


@dataclass(frozen=True)
class Source:
    """A readable set of records. class_names: () where the labels have no names of their own."""

    path: Path
    table: Any
    image_key: str
    label_key: str
    class_names: tuple[str, ...]

    def __iter__(self) -> Iterator[Record]:
        """Yield the records in the order of the files."""
        for row, example in enumerate(self.table):
            image = example[self.image_key] or {}
            inside = image.get("path")
            where = str(inside) if inside and Path(inside).is_file() else f"{self.path}, row {row}"
            yield Record(where, image.get("bytes") or inside or b"", example[self.label_key])


LABELS = ("label", "labels", "class", "text", "caption")


def open_source(path: Path, label: str | None = None) -> Source:
    """Open a parquet file, an image folder, or a folder that `datasets` loads; read nothing yet.

    Nothing is fetched: the path must be on the disk. Of several splits, "train" is taken.
    label: column of the classes or captions; by default one of classes, or the first of LABELS.

    Raises DataError: no such path, nothing to read in it, or no column of images or of labels.
    """
    if not path.exists():
        raise DataError(
            f"{path} is neither a data set that comes with fewstep nor a file or folder here. "
            "Give a parquet file, or a folder with a folder of images for each class."
        )
    import datasets
    from datasets.exceptions import DatasetsError

    datasets.disable_progress_bars()
    try:
        table = _open(path)
    except (DatasetsError, FileNotFoundError, ValueError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path} holds nothing that can be read as images with labels ({first}). Give a "
            "parquet file, or a folder with a folder of images for each class."
        ) from None
    features = table.features or {}
    images = [k for k, v in features.items() if isinstance(v, datasets.Image)]
    images = images or [k for k, v in features.items() if _encoded(v)]
    labels = label_columns(features, label)
    if not images or not labels:
        what = missing_column(images, label)
        raise DataError(
            f"{path} has no column of {what}; its columns are {', '.join(features) or 'none'}. An "
            "image folder needs a folder a class, two or more, or a metadata.jsonl with `text`; a "
            "table an image column and `label` or `text`."
        )
    names = tuple(getattr(features[labels[0]], "names", ()) or ())
    plain = table.cast_column(images[0], datasets.Image(decode=False))
    return Source(path, plain, images[0], labels[0], names)


def label_columns(features: Any, label: str | None) -> list[str]:
    """Return the columns that can be the label, the best first; only `label` where it is given."""
    import datasets

    if label is not None:
        return [label] if label in features else []
    classes = [k for k, v in features.items() if isinstance(v, datasets.ClassLabel)]
    return classes or [k for k in LABELS if k in features]


def missing_column(images: Sequence[str], label: str | None) -> str:
    """Return in words which column there is none of: images, or else what was to be the label."""
    if not images:
        return "images"
    return "labels" if label is None else f"the name {label!r}"


def _encoded(feature: Any) -> bool:
    """Whether a column that does not say so holds image files: bytes, or {bytes, path}."""
    if isinstance(feature, dict):
        return "bytes" in feature
    return getattr(feature, "dtype", "") in ("binary", "large_binary")


def _open(path: Path) -> Any:
    import datasets

    if path.is_file():
        if path.suffix != ".parquet":
            raise ValueError(f"a file must be parquet, not {path.suffix or path.name}")
        return datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        loaded = datasets.load_from_disk(str(path))
    else:
        loaded = datasets.load_dataset(str(path), streaming=True)
    if isinstance(loaded, dict):
        loaded = loaded["train"] if "train" in loaded else next(iter(loaded.values()))
    return loaded


__all__ = ["Record", "Source", "decode", "label_columns", "missing_column", "open_source"]
