"""The kernel distance between two clouds of features."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.errors import DataError, ShapeError
from fewstep.metrics.rows import Rows


def kernel_distance(
    a: Tensor | Rows, b: Tensor | Rows, *, chunk: int = 2048, device: torch.device | None = None
) -> float:
    """Return the squared maximum mean discrepancy of features a (M, D) and b (N, D), unbiased.

    The kernel is (x.y / D + 1)^3. Every pair is used, none is drawn at random, so the value is a
    function of its arguments; with few samples of one distribution it may be a little negative.

    Args:
        a: features (M, D), computed in float64; a tensor, or rows on the disk.
        b: features (N, D).
        device: where to compute; by default where a is.
        chunk: rows of a and of b at a time; the value does not depend on it but in the last digits.

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
    place = device or (a.device if isinstance(a, Tensor) else torch.device("cpu"))
    cross = sum(_sum(x, y) for x in _blocks(a, chunk, place) for y in _blocks(b, chunk, place))
    within = _within(a, chunk, place) + _within(b, chunk, place)
    return within - 2 * cross / (len(a) * len(b))


def _blocks(x: Tensor | Rows, chunk: int, device: torch.device, first: int = 0) -> Iterator[Tensor]:
    for at in range(first, len(x), chunk):
        yield x[at : at + chunk].detach().to(device, torch.float64)


def _within(x: Tensor | Rows, chunk: int, device: torch.device) -> float:
    total = 0.0
    for number, part in enumerate(_blocks(x, chunk, device)):
        own = ((part.square().sum(dim=1) / part.shape[1] + 1) ** 3).sum()
        later = _blocks(x, chunk, device, (number + 1) * chunk)
        total += _sum(part, part) - float(own) + 2 * sum(_sum(part, other) for other in later)
    return total / (len(x) * (len(x) - 1))


def _sum(a: Tensor, b: Tensor) -> float:
    return float(((a @ b.T / a.shape[1] + 1) ** 3).sum())
