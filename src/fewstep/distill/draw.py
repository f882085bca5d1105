"""The few random draws that the stages share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.core.denoiser import coefficient_dtype
from fewstep.errors import RangeError

LARGEST = 1e6  # beyond it float32 keeps nothing of what is added


def check_interval(
    name: str, interval: tuple[float, float], low: float = -math.inf, high: float = math.inf
) -> tuple[float, float]:
    """Return (a, b). Raises RangeError unless low <= a <= b <= high, both at most LARGEST."""
    try:
        a, b = map(float, interval)
    except (TypeError, ValueError, OverflowError):
        a = b = math.nan
    low, high = max(low, -LARGEST), min(high, LARGEST)
    if not low <= a <= b <= high:
        raise RangeError(
            f"{name} = {interval}; it must be (low, high), low <= high, within [{low:g}, {high:g}]."
        )
    return a, b


def uniform(interval: tuple[float, float], x: Tensor, generator: torch.Generator) -> Tensor:
    """Return (B,) numbers, uniform in the interval, one an example of x; float32 or better."""
    kept = coefficient_dtype(x)
    u = torch.rand(len(x), generator=generator, device=x.device, dtype=kept)
    return interval[0] + (interval[1] - interval[0]) * u


def gaussian(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return unit noise of the shape and dtype of x (B, *D)."""
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
