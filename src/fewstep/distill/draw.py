"""The few random draws that the stages share."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from fewstep.core import cond as conds
from fewstep.core.cond import Cond, Copies
from fewstep.core.denoiser import Traits, coefficient_dtype
from fewstep.core.samplers import get_sampler
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


def check_dropout(dropout: float) -> None:
    """Raise RangeError unless it is a probability."""
    if not 0.0 <= dropout <= 1.0:
        raise RangeError(f"dropout = {dropout}; it must lie in [0, 1]. Use 0.1, for example.")


def uniform(interval: tuple[float, float], x: Tensor, generator: Generator) -> Tensor:
    """Return (B,) numbers, uniform in the interval, one an example of x; float32 or better."""
    kept = coefficient_dtype(x)
    u = torch.rand(len(x), generator=generator, device=x.device, dtype=kept)
    return interval[0] + (interval[1] - interval[0]) * u


def gaussian(x: Tensor, generator: Generator) -> Tensor:
    """Return unit noise of the shape and dtype of x (B, *D)."""
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def drop(
    cond: Cond, null: Cond | None, dropout: float, x: Tensor, generator: Generator, copies: Copies
) -> Cond:
    """Return cond of examples x, each replaced by null, if there is one, with probability dropout.

    copies: of null, one per device (`fewstep.core.cond.once`).
    """
    if null is None:
        return cond
    dropped = uniform((0.0, 1.0), x, generator) < dropout
    return conds.replace(cond, dropped, conds.once(null, x.device, copies))


def check_range_of_teacher(w_range: tuple[float, float], traits: Traits) -> tuple[float, float]:
    """Return (low, high). Raises RangeError for no range, or one wider than the teacher's."""
    low, high = check_interval("w_range", w_range)
    if traits.w_range and not traits.w_range[0] <= low <= high <= traits.w_range[1]:
        raise RangeError(
            f"w_range = {w_range} is wider than the teacher's, {traits.w_range}. Narrow it."
        )
    return low, high


def check_free(traits: Traits, role: str, advice: str) -> None:
    """Raise RangeError unless a teacher answers with a velocity, and takes any number of steps.

    role: what it is, such as "the teacher of guidance distillation". advice: what to use instead.
    """
    check_velocity(traits)
    if traits.steps is not None:
        counts = ", ".join(map(str, traits.steps))
        raise RangeError(
            f"{role} must take any number of steps, got one made for {counts}. {advice}"
        )


def check_velocity(traits: Traits) -> None:
    """Raise RangeError for a teacher whose v is no velocity: a consistency model."""
    if traits.sampler is not None and get_sampler(traits.sampler).jumps:
        raise RangeError(
            "a teacher must answer with the velocity of its trajectory, got a model made for the "
            f"sampler {traits.sampler!r}, which jumps to clean. Use the model it was made from."
        )
