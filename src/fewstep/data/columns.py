"""Which column holds the images, and which the classes or captions."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from fewstep.data.config import DataConfig
from fewstep.errors import DataError

LABELS = ("label", "labels", "class", "cls")
CAPTIONS = ("text", "caption", "captions", "prompt", "txt")
IMAGES = ("image", "img", "jpg", "png", "webp", "image_path", "file_name", "path", "file")


class Kind(Enum):
    """What a column holds."""

    IMAGE = "image"  # files, whole
    CLASS = "class"  # whole numbers with declared names
    TEXT = "text"
    TEXTS = "texts"  # lists of text
    OTHER = "other"


class Column(NamedTuple):
    """The column of classes or captions. captions: its texts are used as they are written."""

    name: str
    captions: bool


def image_column(kinds: Mapping[str, Kind], config: DataConfig, where: str) -> str:
    """Return the column of image files, or of their paths.

    Raises DataError where there is none, or the one that `data.image` names is not of images.
    """
    if config.image is not None:
        kind = kinds.get(config.image)
        if kind is None:
            raise _no_column(f"the name {config.image!r}", kinds, where)
        if kind not in (Kind.IMAGE, Kind.TEXT):
            raise DataError(
                f"{where}: column {config.image!r} (data.image) holds neither image files nor "
                "their paths. Name another column."
            )
        return config.image
    images = [name for name, kind in kinds.items() if kind is Kind.IMAGE]
    images += [name for name in IMAGES if kinds.get(name) is Kind.TEXT]
    if not images:
        raise _no_column("images", kinds, where)
    return images[0]


def label_column(kinds: Mapping[str, Kind], config: DataConfig, where: str) -> Column:
    """Return the column of the classes or captions.

    A named column is taken as it is. Otherwise, for prompts a column of text wins over one of
    classes; for classes it is the other way round.

    Raises DataError where there is none.
    """
    prompts = config.cond == "prompt"
    named = (config.caption or config.label) if prompts else config.label
    for given in (config.caption, named):
        if given is not None and given not in kinds:
            raise _no_column(f"the name {given!r}", kinds, where)
    texts = [n for n in (config.caption or "", *CAPTIONS) if _holds_text(kinds, n)]
    classes = [n for n, kind in kinds.items() if kind is Kind.CLASS]
    classes += [n for n in LABELS if kinds.get(n) not in (None, Kind.IMAGE)]
    found = [named] if named else texts + classes if prompts else classes + texts
    if not found:
        raise _no_column("captions or labels" if prompts else "labels", kinds, where)
    name = found[0]
    written = name in (config.caption, *CAPTIONS) or (prompts and name == config.label)
    return Column(name, written and _holds_text(kinds, name))


def _holds_text(kinds: Mapping[str, Kind], name: str) -> bool:
    return kinds.get(name) in (Kind.TEXT, Kind.TEXTS)


def _no_column(what: str, kinds: Mapping[str, Kind], where: str) -> DataError:
    there = ", ".join(kinds) or "none"
    return DataError(
        f"{where} has no column of {what}; its columns are {there}. An image folder needs a folder "
        "for each class, two or more, or captions: a .txt beside each image, or a metadata.jsonl "
        "with `file_name` and `text`. A table needs an image column and `label` or `text`; "
        "data.image, data.label and data.caption name others."
    )
