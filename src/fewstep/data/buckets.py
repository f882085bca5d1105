"""Images of several sizes in one run: each goes to the bucket of its shape.

All images of a batch come from one bucket. Which one is a pure function of the seed and the number
of the update (decision 5).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.atomic import json_sha256
from fewstep.core.cond import Cond
from fewstep.core.seed import derive
from fewstep.data.dataset import Dataset, check_index
from fewstep.data.permutation import epochs, indices
from fewstep.errors import DataError

Size = tuple[int, int]  # height and width


def nearest(size: Size, buckets: Sequence[Size]) -> int | None:
    """Return the bucket of an image: of those that it can be shrunk to, the nearest in shape.

    Of buckets of one shape it is the largest. None where the image is smaller than all buckets.

    size: height and width of the image, in pixels. buckets: heights and widths.
    """
    height, width = size
    fit = [k for k, (h, w) in enumerate(buckets) if h <= height and w <= width]

    def distance(k: int) -> tuple[float, int]:
        h, w = buckets[k]
        return round(abs(math.log(height * w / (width * h))), 9), -h * w

    return min(fit, key=distance, default=None)


class Buckets:
    """Several data sets of one size each, joined into one `fewstep.data.Dataset`.

    A batch has one size. The examples of the first part come first, then those of the second.

    Attributes:
        parts: the data sets, none of them empty.
        shape: (C, H, W) of the model's own size, which need not be a bucket.
        class_names, class_texts: shared by all parts.
        summary: how many examples each size has, in one line.
    """

    def __init__(self, parts: Sequence[Dataset], shape: tuple[int, ...]) -> None:
        """Put data sets together."""
        self.parts, self.shape = tuple(parts), shape
        self.class_names, self.class_texts = parts[0].class_names, parts[0].class_texts
        self.num_classes = parts[0].num_classes
        self.skipped = parts[0].skipped
        counts = torch.tensor([len(p) for p in parts])
        self._starts = (counts.cumsum(0) - counts).tolist()
        self._of = torch.arange(len(parts)).repeat_interleave(counts)
        sizes = ", ".join(f"{p.shape[1]}x{p.shape[2]}: {len(p):,}" for p in parts)
        self.summary = f"{parts[0].summary}; height x width of the training images: {sizes}"

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._of)

    def batch(self, index: Tensor) -> tuple[Tensor, Cond]:
        """Return x (B, *D) and conditions of B. Raises DataError for examples of two sizes."""
        check_index(index, len(self))
        found = self._of[index].unique().tolist()
        if len(found) > 1:
            raise DataError(
                f"a batch must be of one size, got examples of {len(found)} buckets. Take those "
                "that `examples` returns."
            )
        k = found[0] if found else 0
        return self.parts[k].batch(index - self._starts[k])

    def content_hash(self) -> str:
        """Return the sha256, in hex, of all parts."""
        return json_sha256([part.content_hash() for part in self.parts])

    def largest(self) -> int:
        """Return the number of an example of the largest size."""
        k = max(range(len(self.parts)), key=lambda k: math.prod(self.parts[k].shape))
        return int(self._starts[k])

    def examples(
        self, seed: int, update: int, size: int, *, part: int, parts: int
    ) -> tuple[Tensor, Tensor]:
        """Return the examples (size,) of one part of an update, and the epoch of each.

        All parts of an update have one bucket: that of an example drawn from all. So a bucket is
        drawn as often as its number of examples says, and its own examples come in epochs.
        A pure function of its arguments.
        """
        draws = derive(seed, "buckets")
        k = int(self._of[indices(draws, update, 1, len(self))])
        before = self._drawn_before(draws, update, k)
        own, count = derive(seed, "bucket", k), len(self.parts[k])
        index = indices(own, before, size, count, rank=part, world=parts)
        return index + self._starts[k], epochs(before, size, count, rank=part, world=parts)

    def _drawn_before(self, draws: int, update: int, k: int) -> int:
        """Return how many updates before this one had the bucket k."""
        epoch, offset = divmod(update, len(self))
        drawn = self._of[self._epoch(draws, epoch)[:offset]]
        return epoch * len(self.parts[k]) + int((drawn == k).sum())

    @functools.lru_cache(maxsize=2)  # noqa: B019  one or two of these live as long as a run
    def _epoch(self, draws: int, epoch: int) -> Tensor:
        return indices(draws, epoch, len(self), len(self))
