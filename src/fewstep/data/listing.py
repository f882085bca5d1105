"""Which files a path holds: one listing for decoding, streaming and folders of `--image`.

Names mean nothing but themselves: there are no patterns and no split words within a name, and no
file is obeyed. Symbolic links are followed, each folder once. Hidden files (`.name`) and folders
such as `__MACOSX` are ignored. Order is that of the whole relative path, as text.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from fewstep.data.decode import suffixes
from fewstep.errors import DataError

TABLES = frozenset({".parquet", ".pq"})
ARCHIVES = frozenset({".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst"})
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
TRAIN = frozenset({"train", "training"})
SPLIT_NAMES = TRAIN | {
    *("test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation"),
    *("held-out", "held_out", "holdout"),
}
_SHARD = re.compile(
    r"^(?P<split>.+?)(?:[-_.]\d+(?:[-_.]of[-_.]\d+)?(?:[-_.][0-9a-f]{16})?)?$", re.IGNORECASE
)


@dataclass
class Listing:
    """The files beneath a folder.

    Attributes:
        root: the folder.
        files: paths beneath it, relative, in the order of their text.
        left_out: how many files are not used, by reason.
    """

    root: Path
    files: list[Path]
    left_out: Counter[str] = field(default_factory=Counter)

    @cached_property
    def images(self) -> list[Path]:
        """The image files."""
        return [f for f in self.files if f.suffix.lower() in suffixes()]

    @cached_property
    def tables(self) -> list[Path]:
        """The parquet files, without the metadata of image folders."""
        return [
            f for f in self.files if f.suffix.lower() in TABLES and f.name.lower() not in METADATA
        ]

    @cached_property
    def archives(self) -> list[Path]:
        """The archives, which are not opened."""
        return [f for f in self.files if f.suffix.lower() in ARCHIVES]


def kind_of(path: Path | str) -> Literal["file", "folder"] | None:
    """Return what a path is: a file, a folder, or None where there is nothing readable.

    Raises DataError for a path that the operating system refuses (too long, no permission).
    """
    try:
        if os.path.isdir(path):
            return "folder"
        return "file" if os.path.exists(path) else None
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)[:200]!r} is not a path that can be read: {error}.") from None


def list_folder(root: Path, deep: bool = True) -> Listing:
    """Return the files of a folder; deep: and of the folders in it.

    Raises DataError for a folder that cannot be read.
    """
    found = Listing(root, [])
    seen: set[tuple[int, int]] = set()
    folders = [Path()]
    links: list[Path] = []
    while folders or links:
        # Links come last, so that a folder is called by its own name and not by that of a link.
        inside = folders.pop() if folders else links.pop()
        if _is_new(root / inside, seen):
            real, linked = _scan(found, inside)
            folders += real if deep else []
            links += linked if deep else []
        else:
            found.left_out["a link to a folder that was read already"] += 1
    found.files.sort(key=lambda f: f.as_posix())
    return found


def _is_new(folder: Path, seen: set[tuple[int, int]]) -> bool:
    try:
        stat = folder.stat()
    except OSError as error:
        raise _unreadable(folder, error) from None
    known = (stat.st_dev, stat.st_ino) in seen
    seen.add((stat.st_dev, stat.st_ino))
    return not known


def _scan(found: Listing, inside: Path) -> tuple[list[Path], list[Path]]:
    """Add the files of one folder; return the folders in it, and the links to folders."""
    real: list[Path] = []
    linked: list[Path] = []
    try:
        with os.scandir(found.root / inside) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    if not entry.name.startswith("__"):
                        (linked if entry.is_symlink() else real).append(inside / entry.name)
                elif entry.is_file():
                    found.files.append(inside / entry.name)
                else:
                    found.left_out["a broken link or a special file"] += 1
    except OSError as error:
        raise _unreadable(found.root / inside, error) from None
    return sorted(real, reverse=True), sorted(linked, reverse=True)


def _unreadable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"the folder {folder} cannot be read: {error.strerror or type(error).__name__}. Make it "
        "readable, or move it elsewhere."
    )


def is_split(name: str) -> bool:
    """Return whether a folder's name is that of a split: train, test, validation, ..."""
    return name.casefold() in SPLIT_NAMES


def training_images(listing: Listing) -> tuple[Path, list[Path]]:
    """Return the folder, relative, that class folders lie in, and the training images.

    Where all folders beside each other have the names of splits, `train` is read and the others
    are left out, with a count in the listing. Otherwise a folder called train is a class.

    Raises DataError: splits without train among them, or beside folders that are no splits.
    """
    images = listing.images
    folders = Counter(f.parent for f in images)
    base = Path()
    while True:
        children = sorted({f.relative_to(base).parts[0] for f in folders if f != base})
        splits = [c for c in children if is_split(c)]
        deep = [c for c in splits if base / c not in folders]
        if splits and splits == children and (len(splits) > 1 or deep):
            chosen = base / _train_of(splits, listing.root / base)
            inside = {f for f in folders if f.is_relative_to(chosen)}
            kept = [f for f in images if f.parent in inside]
            reason = f"outside of {chosen}, the training split"
            listing.left_out[reason] += len(images) - len(kept)
            return chosen, kept
        if len(splits) > 1 and deep == splits and base not in folders:
            others = ", ".join(c for c in children if c not in splits)
            raise DataError(
                f"{listing.root / base} has the splits {', '.join(splits)} beside other folders "
                f"({others}). Give the folder of the training images, "
                f"{listing.root / base / splits[0]} for example."
            )
        if base in folders or len(children) != 1:
            return base, images
        base = base / children[0]


def training_tables(listing: Listing) -> list[Path]:
    """Return the parquet files of the training split, or all of them where there are no splits.

    A file belongs to a split where it, without numbers, or the folder that it lies in has the name
    of one: test-00000-of-00001.parquet, test.parquet, test/0000.parquet. The others are left out,
    with a count in the listing.

    Raises DataError: several splits without train among them, or beside files of none.
    """
    tables = listing.tables
    split_of = {f: _split_of(f) for f in tables}
    splits = sorted({s for s in split_of.values() if s})
    if len(splits) < 2:
        return tables
    none = [f for f in tables if not split_of[f]]
    if none:
        raise DataError(
            f"{listing.root} has tables of the splits {', '.join(splits)} and {none[0]}, which "
            "belongs to none of them. Give the file or the folder of the training images."
        )
    chosen = _train_of(splits, listing.root)
    inside = [f for f in tables if split_of[f] == chosen]
    listing.left_out[f"tables of other splits than {chosen}"] += len(tables) - len(inside)
    return inside


def _split_of(file: Path) -> str | None:
    name = _SHARD.match(file.stem)
    names = [name["split"] if name else "", *reversed(file.parts[:-1])]
    return next((n.casefold() for n in names if is_split(n)), None)


def _train_of(splits: Sequence[str], where: Path) -> str:
    train = [s for s in splits if s.casefold() in TRAIN]
    if len(splits) == 1 or len(train) == 1:
        return (train or list(splits))[0]
    raise DataError(
        f"{where} has the splits {', '.join(splits)}, and {'several of' if train else 'none of'} "
        "them are called train. Give the folder or file of the training images."
    )


def count_others(listing: Listing, used: Callable[[Path], bool]) -> None:
    """Count the files that are not used, by their suffix."""
    kinds = Counter(f.suffix.lower() or f.name for f in listing.files if not used(f))
    if kinds:
        few = ", ".join(k for k, _ in kinds.most_common(3))
        more = " and more" if len(kinds) > 3 else ""
        listing.left_out[f"other kinds of files: {few}{more}"] += sum(kinds.values())
