"""The paired distance: between the samples of two samplers from the same noise."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.errors import DataError, ShapeError


def paired_rms(a: Tensor, b: Tensor) -> float:
    """Return sqrt(mean over all elements of (a - b)^2), in pixel units, computed in float64.

    a, b: (B, *D), sample i of both from the same noise, condition and w; unpaired samples give
    a number too, which means nothing. Raises ShapeError where the shapes differ, and DataError
    for no samples.
    """
    if a.shape != b.shape:
        raise ShapeError(
            f"samples of shape {tuple(a.shape)} beside {tuple(b.shape)}; paired samples have one "
            "shape. Draw both from the same noise."
        )
    if not a.numel():
        raise DataError("0 paired samples; a distance takes at least 1. Draw some samples.")
    left = a.detach().to(torch.float64)
    return float((left - b.detach().to(left)).square().mean().sqrt())
