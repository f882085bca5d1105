"""PSNR of reconstructions, and how close encoded noise is to a Gaussian."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.core.seed import generator
from fewstep.errors import DataError, ShapeError

PROJECTIONS = 64
FLOOR = 1e-10  # mean square at which two images count as equal: a PSNR of 106 dB


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the mean over images of 10 log10(4 / mean square difference), in dB.

    a, b: (B, *D) in [-1, 1], so that the peak is 2. Equal images count as 106 dB. Raises
    ShapeError where the shapes differ, DataError for no images.
    """
    if a.shape != b.shape:
        raise ShapeError(
            f"images of shape {tuple(a.shape)} beside {tuple(b.shape)}; they must have one shape."
        )
    if not len(a):
        raise DataError("0 images; a PSNR takes at least 1.")
    off = (a.detach().double() - b.detach().double()).square().flatten(1).mean(dim=1)
    return float((10.0 * torch.log10(4.0 / off.clamp_min(FLOOR))).mean())


def noise_figures(z: Tensor) -> dict[str, float]:
    """Return how far noise z (B, *D) is from independent unit Gaussians.

    `noise_mean` and `noise_variance`, of all elements; `noise_ks`, the Kolmogorov-Smirnov
    distance of all elements to N(0, 1); `noise_ks_sliced`, the mean of that distance over 64
    fixed random directions, which also sees correlations between elements. Gaussian noise itself
    has a distance of about 0.87 / sqrt(n): n = B D for the first, and B for the second.

    Raises DataError for fewer than 2 examples.
    """
    if len(z) < 2:
        raise DataError(f"{len(z)} noises; their figures take at least 2.")
    rows = z.detach().cpu().double().flatten(1)
    draws = torch.randn(
        rows.shape[1], PROJECTIONS, generator=generator("cpu", 0, "slices"), dtype=rows.dtype
    )
    slices = rows @ (draws / draws.norm(dim=0))
    return {
        "noise_mean": float(rows.mean()),
        "noise_variance": float(rows.var()),
        "noise_ks": float(_ks(rows.reshape(-1, 1)).mean()),
        "noise_ks_sliced": float(_ks(slices).mean()),
    }


def _ks(columns: Tensor) -> Tensor:
    """Return for each column of (n, k) the largest gap between its distribution and N(0, 1)'s."""
    n = len(columns)
    expected = 0.5 * (1.0 + torch.erf(columns.sort(dim=0).values / math.sqrt(2.0)))
    above = torch.arange(1, n + 1, dtype=columns.dtype)[:, None] / n - expected
    return torch.maximum(above, 1.0 / n - above).amax(dim=0)
