"""What was found at a path: the examples, what they are called, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.data.decode import Record
from fewstep.data.labels import Classes, caption_of, class_of, number_classes
from fewstep.errors import DataError

BAD = "bad images or labels"


@dataclass(frozen=True)
class Records:
    """A readable set of records, in a fixed order.

    Attributes:
        path: where it was found.
        class_names: declared names of the classes that labels number, or of their folders; () where
            labels are names themselves.
        captions: whether labels are captions, to be used as they are written.
        columns: where images and labels come from, in words.
        unit: what is counted: "image files" or "rows".
        seen: number of them, used or not.
        left_out: how many are not used, by reason.
        files: name and path of each file that the records depend on.
        read: returns an iterator over the records.
    """

    path: Path
    class_names: tuple[str, ...]
    captions: bool
    columns: str
    unit: str
    seen: int
    left_out: Counter[str]
    files: Sequence[tuple[str, Path]]
    read: Callable[[], Iterator[Record]]

    def __iter__(self) -> Iterator[Record]:
        """Yield the records."""
        return self.read()

    def label(self, record: Record, number: int) -> int | str:
        """Return the label of the record of that number, checked.

        Raises DataError, naming the record, where it is missing or cannot be one.
        """
        if record.problem is not None:
            raise DataError(record.problem)
        return label_of(record.label, record.where, number, self.captions, len(self.class_names))

    def classes(self, labels: Sequence[int | str]) -> Classes:
        """Return the classes that are there, and the class id of each label."""
        return number_classes(labels, self.class_names)


def label_of(value: Any, where: str, number: int, captions: bool, known: int) -> int | str:
    """Return a checked label: a caption where labels are captions, or else a class."""
    return caption_of(value, where, number) if captions else class_of(value, where, known)


class Account(NamedTuple):
    """How the files of a data set became its examples.

    Attributes:
        unit: what is counted: "image files" or "rows".
        seen: number of them.
        used: number of examples, in all splits.
        train, held_out: number of examples in each split.
        classes: number of classes, or of distinct captions.
        captions: whether they are captions.
        columns: where images and labels come from, in words.
        left_out: how many are not used, by reason.
    """

    unit: str
    seen: int
    used: int
    train: int
    held_out: int
    classes: int
    captions: bool
    columns: str
    left_out: Counter[str]

    def line(self, name: str) -> str:
        """Return the account in one line, for the terminal."""
        kind = "captions" if self.captions else "classes"
        left = ", ".join(f"{n:,} ({reason})" for reason, n in self.left_out.items() if n)
        return (
            f"{name}: {self.seen:,} {self.unit} seen, {self.used:,} used ({self.train:,} to train "
            f"on, {self.held_out:,} held out), {self.classes:,} {kind}; {self.columns}; left out: "
            f"{left or 'nothing'}"
        )
