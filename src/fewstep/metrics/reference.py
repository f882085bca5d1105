"""The training images, as the metrics see them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.metrics.diversity import Nearest
from fewstep.metrics.features import Features, extract
from fewstep.metrics.frechet import Moments, RunningMoments

PAIRED = 10_000


@dataclass(frozen=True)
class Reference:
    """The training images, as the metrics see them; build it once for many cells.

    Attributes:
        name: of the features.
        moments: of the training images' features; None for a single image, which has none.
        images: the training images, (N, *D) in [-1, 1]; None where they do not fit in memory.
        features: of at most 10,000 of them, evenly chosen, for the metrics that compare pairs.
        count: N, the number of training images.
    """

    name: str
    moments: Moments | None
    images: Tensor | None
    features: Tensor
    _nearest: dict[torch.device, Nearest] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def nearest(self, device: torch.device) -> Nearest | None:
        """Return the training images to compare with, made once; None where they do not fit."""
        if self.images is None:
            return None
        if device not in self._nearest:
            self._nearest[device] = Nearest(self.images, device)
        return self._nearest[device]

    @property
    def count(self) -> int:
        """The number of training images."""
        return len(self.features) if self.moments is None else self.moments.count

    @classmethod
    def build(cls, images: Tensor, features: Features) -> Reference:
        """Return the reference of training images (N, *D), N at least 1, under the features."""
        seen = extract(features, images).features
        return cls.of_features(features.name, len(images), [seen], images)

    @classmethod
    def of_features(
        cls, name: str, count: int, parts: Iterable[Tensor], images: Tensor | None
    ) -> Reference:
        """Return the reference of `count` images whose features come batch by batch.

        name: of the features. images: all of them, or None where they are too many to keep:
        `nearest` is None then.
        """
        running, picked = RunningMoments(), Picked(count, PAIRED)
        for part in parts:
            running.add(part)
            picked.add(part)
        return cls(name, running.moments() if count > 1 else None, images, picked.rows)


class Picked:
    """At most `most` of `count` rows that come batch by batch, evenly chosen."""

    def __init__(self, count: int, most: int) -> None:
        """Expect `count` rows."""
        self._index = evenly(min(count, most), count)
        self._seen = 0
        self._parts: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Add the next rows (B, *D)."""
        index = self._index - self._seen
        self._parts.append(rows[index[(index >= 0) & (index < len(rows))]])
        self._seen += len(rows)

    @property
    def rows(self) -> Tensor:
        """Those that were chosen."""
        return torch.cat(self._parts)


def evenly(count: int, of: int) -> Tensor:
    """Return `count` numbers from 0 to of - 1, evenly spread and rising."""
    # Double precision would round to other numbers, and published figures would change.
    return torch.linspace(0, of - 1, count).round().long()
