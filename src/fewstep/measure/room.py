"""Memory that measuring takes, compared with what the machine has."""

from __future__ import annotations

import math

from fewstep.errors import RangeError, in_units
from fewstep.resident import free_memory

PER_VALUE = 32  # bytes per value of an image: samples, the teacher's, and both in float64
KEPT_PER_VALUE = 12  # bytes per value of a training image: float32, and float64 beside it
MAX_SAMPLES = 10_000_000


def check_samples(samples: int, shape: tuple[int, ...], option: str) -> None:
    """Raise RangeError unless the samples of one cell can be measured in memory.

    shape: of one image. option: the name of the setting, for the message.
    """
    if not 2 <= samples <= MAX_SAMPLES:
        raise RangeError(f"{option} must be from 2 to {MAX_SAMPLES:,}, got {samples:,}.")
    each, there = PER_VALUE * math.prod(shape), free_memory()
    if samples * each > there:
        raise RangeError(
            f"{option} must fit in memory: {samples:,} images of shape {shape} take about "
            f"{in_units(samples * each)} while they are measured, and {in_units(there)} are "
            f"available. Use at most {max(2, there // each):,}."
        )


def fits(count: int, shape: tuple[int, ...]) -> bool:
    """Whether so many training images can be kept in half of the memory that is available."""
    return count * KEPT_PER_VALUE * math.prod(shape) <= free_memory() // 2
