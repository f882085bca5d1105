"""Folders of image files: a folder for each class, captions beside the images, or metadata."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.data.columns import Column, Kind, label_column
from fewstep.data.config import DataConfig
from fewstep.data.decode import Record
from fewstep.data.found import Records
from fewstep.data.labels import in_order
from fewstep.data.listing import METADATA, Listing, count_others, training_images
from fewstep.data.metadata import FILE_NAME, read_metadata
from fewstep.data.text import lines_of, read_text
from fewstep.errors import DataError

SIDECARS = (".txt", ".caption")
ROWS = "metadata"
FOLDERS = "the folders' names"
BESIDE = "the text files beside the images"


class Example(NamedTuple):
    """A row of metadata. file: its image; None where there is none, and problem says why."""

    where: str
    file: Path | None
    row: dict[str, Any]
    problem: str | None = None


@dataclass(frozen=True)
class Layout:
    """What a folder of images holds; paths are relative to it.

    Attributes:
        listing: all its files.
        images: the training images, in order.
        class_of: name of the class folder of each image that lies in one.
        beside: text file with the captions of each image that has one.
        metadata: metadata files, in order.
        rows: their rows, in order, those of other splits left out.
    """

    listing: Listing
    images: list[Path]
    class_of: dict[Path, str]
    beside: dict[Path, Path]
    metadata: list[Path]
    rows: list[Example]

    def kinds(self) -> dict[str, Kind]:
        """Return the columns: those of the metadata, the class folders and the text files."""
        found: dict[str, Kind] = {}
        for row in self.rows:
            for name, value in row.row.items():
                if name != FILE_NAME and found.get(name) in (None, Kind.OTHER):
                    found[name] = _kind(value)
        if self.beside:
            found.setdefault("text", Kind.TEXTS)
        # One folder beside loose images, or with captions in it, is no class.
        if len(set(self.class_of.values())) > 1 or (
            not found and len(self.class_of) == len(self.images)
        ):
            found.setdefault("label", Kind.CLASS)
        return found


def open_images(listing: Listing, config: DataConfig) -> Records:
    """Return the records of a folder of images; no image is read yet.

    Raises DataError: neither classes nor captions, metadata that cannot be read, splits without a
    training split.
    """
    if config.image is not None:
        raise DataError(
            f"data.image names a column of a table, and {listing.root} is a folder of images. "
            "Leave data.image out."
        )
    layout = _layout(listing)
    column = label_column(layout.kinds(), config, str(listing.root))
    origin = _origin(layout, column)
    read = {ROWS: _from_rows, FOLDERS: _from_folders, BESIDE: _from_files}[origin]
    files, unused, records = read(layout, column.name)
    _count(layout, files, unused)
    kind = "captions" if column.captions else "classes"
    place = f"{column.name!r} of {layout.metadata[0].name}" if origin == ROWS else origin
    return Records(
        path=listing.root,
        class_names=tuple(in_order(set(layout.class_of.values()))) if origin == FOLDERS else (),
        captions=column.captions,
        columns=f"{kind} from {place}",
        unit="image files",
        seen=len(listing.images),
        left_out=listing.left_out,
        files=[(f.as_posix(), listing.root / f) for f in files],
        read=records,
    )


Read = tuple[list[Path], str, Callable[[], Iterator[Record]]]


def _from_rows(layout: Layout, column: str) -> Read:
    files = sorted({r.file for r in layout.rows if r.file is not None}, key=Path.as_posix)
    root = layout.listing.root

    def records() -> Iterator[Record]:
        for row in layout.rows:
            where = row.where if row.file is None else str(root / row.file)
            path = "" if row.file is None else str(root / row.file)
            yield Record(where, path, row.row.get(column), row.problem)

    return [*files, *layout.metadata], f"not named in {layout.metadata[0].name}", records


def _from_folders(layout: Layout, _: str) -> Read:
    files = [f for f in layout.images if f in layout.class_of]
    root = layout.listing.root

    def records() -> Iterator[Record]:
        for file in files:
            yield Record(str(root / file), str(root / file), layout.class_of[file])

    return files, "in no folder of a class", records


def _from_files(layout: Layout, _: str) -> Read:
    files = [f for f in layout.images if f in layout.beside]
    root = layout.listing.root

    def records() -> Iterator[Record]:
        for file in files:
            where, captions, problem = str(root / file), None, None
            try:
                captions = lines_of(read_text(root / layout.beside[file]))
            except DataError as error:
                problem = str(error)
            yield Record(where, where, captions, problem)

    return [*files, *sorted(set(layout.beside.values()))], "without a text file beside it", records


def _origin(layout: Layout, column: Column) -> str:
    if any(column.name in r.row for r in layout.rows):
        return ROWS
    return FOLDERS if layout.kinds()[column.name] is Kind.CLASS else BESIDE


def _count(layout: Layout, files: Sequence[Path], unused: str) -> None:
    """Count the files that are not used: images for that reason, the others by their suffix."""
    used = {*files, *layout.beside.values(), *layout.metadata}
    layout.listing.left_out[unused] += sum(f not in used for f in layout.images)
    images = set(layout.listing.images)
    count_others(layout.listing, lambda f: f in used or f in images)


def _kind(value: Any) -> Kind:
    if isinstance(value, str):
        return Kind.TEXT
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return Kind.TEXTS
    return Kind.OTHER


def _layout(listing: Listing) -> Layout:
    base, images = training_images(listing)
    metadata = [f for f in listing.files if f.name.lower() in METADATA and _concerns(f, base)]
    for one, two in zip(metadata, metadata[1:], strict=False):
        if one.parent == two.parent:
            raise DataError(
                f"{listing.root / one} and {two.name} lie in one folder. Remove one of them."
            )
    known = set(listing.files)
    files = sorted(known, key=Path.as_posix, reverse=True)  # of a.TXT and a.txt, the first wins
    texts = {
        f.with_suffix(""): f for s in reversed(SIDECARS) for f in files if f.suffix.lower() == s
    }
    beside = {f: texts[f.with_suffix("")] for f in images if f.with_suffix("") in texts}
    return Layout(
        listing, images, _classes(base, images), beside, metadata,
        _rows(listing, metadata, known, set(images)),
    )  # fmt: skip


def _concerns(metadata: Path, base: Path) -> bool:
    return metadata.is_relative_to(base) or base.is_relative_to(metadata.parent)


def _classes(base: Path, images: Sequence[Path]) -> dict[Path, str]:
    """Return the class of each image: the outermost folder, below base, with images in it."""
    direct = {f.parent for f in images}
    folder_of = {
        folder: next(
            (p for p in (*reversed(folder.parents), folder) if p in direct and _below(p, base)),
            None,
        )
        for folder in direct
    }
    found = {f for f in folder_of.values() if f is not None}
    once = Counter(f.name for f in found)
    names = {f: f.name if once[f.name] == 1 else f.relative_to(base).as_posix() for f in found}
    return {f: names[c] for f in images if (c := folder_of[f.parent]) is not None}


def _below(folder: Path, base: Path) -> bool:
    return folder != base and folder.is_relative_to(base)


def _rows(
    listing: Listing, metadata: Sequence[Path], known: set[Path], images: set[Path]
) -> list[Example]:
    others = set(listing.images) - images
    found = []
    for file in metadata:
        for where, row in read_metadata(listing.root / file):
            example = _example(file, where, row, known)
            if example.file not in others:
                found.append(example)
    return found


def _example(metadata: Path, where: str, row: dict[str, Any], known: set[Path]) -> Example:
    name = os.path.normpath(row[FILE_NAME])
    if os.path.isabs(name) or name.split(os.sep)[0] == os.pardir:
        problem = (
            f"{where}: {FILE_NAME} must be a path inside the folder of {metadata.name}, got "
            f"{row[FILE_NAME]!r}."
        )
        return Example(where, None, row, problem)
    file = metadata.parent / name
    if file not in known:
        problem = f"{where}: there is no file {row[FILE_NAME]!r} beside {metadata.name}."
        return Example(where, None, row, problem)
    return Example(where, file, row)
