"""Memory that measuring takes, compared with what the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path

from fewstep.errors import RangeError, in_units

MEMINFO = Path("/proc/meminfo")
PER_VALUE = 32  # bytes per value of an image: samples, the teacher's, and both in float64
KEPT_PER_VALUE = 12  # bytes per value of a training image: float32, and float64 beside it
MAX_SAMPLES = 10_000_000


def available_memory() -> int:
    """Return the bytes of memory that this machine can still give."""
    if MEMINFO.is_file():
        for line in MEMINFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def check_samples(samples: int, shape: tuple[int, ...], option: str) -> None:
    """Raise RangeError unless the samples of one cell can be measured in memory.

    shape: of one image. option: the name of the setting, for the message.
    """
    if not 2 <= samples <= MAX_SAMPLES:
        raise RangeError(f"{option} must be from 2 to {MAX_SAMPLES:,}, got {samples:,}.")
    each, there = PER_VALUE * math.prod(shape), available_memory()
    if samples * each > there:
        raise RangeError(
            f"{option} must fit in memory: {samples:,} images of shape {shape} take about "
            f"{in_units(samples * each)} while they are measured, and {in_units(there)} are "
            f"available. Use at most {max(2, there // each):,}."
        )


def fits(count: int, shape: tuple[int, ...]) -> bool:
    """Whether so many training images can be kept in half of the memory that is available."""
    return count * KEPT_PER_VALUE * math.prod(shape) <= available_memory() // 2
