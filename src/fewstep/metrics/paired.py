"""The paired distance: between the samples of two samplers from the same noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.errors import DataError, ShapeError


def paired_rms(a: Tensor, b: Tensor) -> float:
    """Return sqrt(mean over all elements of (a - b)^2), in pixel units, computed in float64.

    a, b: (B, *D), sample i of both from the same noise, condition and w; unpaired samples give
    a number too, which means nothing. Raises ShapeError where the shapes differ, and DataError
    for no samples.
    """
    running = RunningRms()
    running.add(a, b)
    return running.value()


class RunningRms:
    """The paired distance of samples that come batch by batch."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, a: Tensor, b: Tensor) -> None:
        """Add pairs of samples, (B, *D) each. Raises ShapeError where the shapes differ."""
        if a.shape != b.shape:
            raise ShapeError(
                f"samples of shape {tuple(a.shape)} beside {tuple(b.shape)}; paired samples have "
                "one shape. Draw both from the same noise."
            )
        left = a.detach().to(torch.float64)
        self._sum += float((left - b.detach().to(left)).square().sum())
        self._count += a.numel()

    def value(self) -> float:
        """Return the distance. Raises DataError for no samples."""
        if not self._count:
            raise DataError("0 paired samples; a distance takes at least 1. Draw some samples.")
        return math.sqrt(self._sum / self._count)
