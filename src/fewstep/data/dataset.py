"""What every data set is: a numbered list of images with conditions, all in memory or on disk."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.errors import DataError, did_you_mean

SPLITS = ("train", "held-out")


class Dataset(Protocol):
    """A split of a data set. The null class, for unconditional passes, is `num_classes`."""

    def __len__(self) -> int:
        """Return the number of examples."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, e.g. (1, 8, 8)."""

    @property
    def num_classes(self) -> int:
        """Number of classes, without the null class."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes are called, in the order of their ids."""

    @property
    def class_texts(self) -> tuple[str, ...]:
        """What stands in the prompts of each class: its name in words, or the caption it is."""

    @property
    def summary(self) -> str:
        """What was seen, used and left out, and why, in one line."""

    @property
    def skipped(self) -> int:
        """Number of images that were left out as bad."""

    def batch(self, index: Tensor) -> tuple[Tensor, Cond]:
        """Return the examples numbered by index (B,), int64.

        Returns:
            x (B, *shape) float32 in [-1, 1], and the condition: class ids (B,) int64.

        Raises:
            DataError: the index is not whole numbers from 0 to len - 1.
        """

    def content_hash(self) -> str:
        """Return the sha256, in hex, of the images, their classes and the split."""


def check_split(split: str) -> None:
    """Raise DataError unless split is one of SPLITS."""
    if split not in SPLITS:
        raise DataError(
            f"{split!r} is not a split; the splits are {' and '.join(SPLITS)}."
            f"{did_you_mean(split, SPLITS)}"
        )


def check_index(index: Tensor, length: int) -> None:
    """Raise DataError unless index is (B,) int64 within 0..length - 1.

    A negative index would quietly count from the end, so it is refused too.
    """
    if index.dtype != torch.int64 or index.ndim != 1:
        raise DataError(
            f"the index is {index.dtype} of shape {tuple(index.shape)}; give whole numbers of "
            "shape (B,), e.g. torch.arange(8)."
        )
    if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < length):
        raise DataError(
            f"the index reaches from {int(index.min())} to {int(index.max())}; this split has "
            f"examples 0 to {length - 1}. Stay inside."
        )
