"""The 8x8 handwritten digits that come with scikit-learn: 1,797 images, nothing to download."""

from __future__ import annotations

import functools
import hashlib

import torch
from torch import Tensor

from fewstep.core.seed import derive
from fewstep.data.dataset import check_index, check_split

NUM_CLASSES = 10
HELD_OUT_PER_CLASS = 30


class Digits:
    """Scikit-learn's digits: 1,497 images to train on, 300 (30 of each class) held out.

    The images are ordered by writer, so the last 300 would be other people's hands: further from
    the training images (0.292 from the nearest, where this split is 0.262) and no
    measure of what is ordinary. Here the 30 images of each class whose hash
    `derive(0, "digits", "held-out", index)` is smallest are held out; a hash rather than a
    random permutation, so that no version of any library can move an image across.

    Source: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, its test set.
    """

    shape = (1, 8, 8)
    num_classes = NUM_CLASSES
    class_names = tuple(str(k) for k in range(NUM_CLASSES))
    class_texts = class_names
    summary = (
        "digits: 1,797 images seen, 1,797 used (1,497 to train on, 300 held out), 10 classes; from "
        "scikit-learn; left out: nothing"
    )
    skipped = 0

    def __init__(self, split: str = "train") -> None:
        """Open the split "train" or "held-out". Raises DataError for another."""
        check_split(split)
        self.split = split
        x, labels, held_out = _load()
        chosen = held_out if split == "held-out" else ~held_out
        #: Place of each example in scikit-learn's order, increasing: (length,) int64.
        self.places = chosen.nonzero().flatten()
        self._x, self._labels = x[chosen], labels[chosen]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._labels)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return x (B, 1, 8, 8) float32 in [-1, 1] and class ids (B,) int64.

        A grey level p of 0..16 becomes x = p / 8 - 1, exactly. Raises DataError for an index
        outside the split.
        """
        check_index(index, len(self))
        return self._x[index], self._labels[index]

    def content_hash(self) -> str:
        """Return the sha256, in hex, of the split's name, images, classes and places."""
        digest = hashlib.sha256(f"digits/{self.split}".encode())
        for part in (self._x, self._labels, self.places):
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()


@functools.cache
def _load() -> tuple[Tensor, Tensor, Tensor]:
    """Return all x (1797, 1, 8, 8), class ids (1797,), and which are held out (1797,)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (torch.from_numpy(bunch.images) / 8 - 1).float().unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for k in range(NUM_CLASSES):
        members: list[int] = (labels == k).nonzero().flatten().tolist()
        members.sort(key=lambda i: derive(0, "digits", "held-out", i))
        held_out[members[:HELD_OUT_PER_CLASS]] = True
    return x, labels, held_out
