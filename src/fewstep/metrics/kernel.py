"""The kernel distance between two clouds of features."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.errors import DataError, ShapeError


def kernel_distance(a: Tensor, b: Tensor, *, chunk: int = 2048) -> float:
    """Return the squared maximum mean discrepancy of features a (M, D) and b (N, D), unbiased.

    The kernel is (x.y / D + 1)^3. Every pair is used, none is drawn at random, so the value is a
    function of its arguments; with few samples of one distribution it may be a little negative.

    Args:
        a: features (M, D), computed in float64 on their device.
        b: features (N, D).
        chunk: rows at a time; the value does not depend on it but in the last digits.

    Raises:
        ShapeError: a and b are not (M, D) and (N, D).
        DataError: fewer than 2 samples in either.

    Source: Binkowski et al. 2018, arXiv:1801.01401, section 4.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ShapeError(
            f"features have shapes {tuple(a.shape)} and {tuple(b.shape)}; a kernel distance takes "
            "(M, D) and (N, D). Give features of one extractor."
        )
    if min(len(a), len(b)) < 2:
        raise DataError(
            f"{len(a)} and {len(b)} samples; a kernel distance takes at least 2 of each. Draw more."
        )
    a, b = (x.detach().to(a.device, torch.float64) for x in (a, b))
    within = _within(a, chunk) + _within(b, chunk)
    return within - 2 * _sum(a, b, chunk) / (len(a) * len(b))


def _within(x: Tensor, chunk: int) -> float:
    own = ((x.square().sum(dim=1) / x.shape[1] + 1) ** 3).sum()
    return (_sum(x, x, chunk) - float(own)) / (len(x) * (len(x) - 1))


def _sum(a: Tensor, b: Tensor, chunk: int) -> float:
    return sum(float(((part @ b.T / a.shape[1] + 1) ** 3).sum()) for part in a.split(chunk))
