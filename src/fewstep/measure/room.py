"""Memory and disk that measuring takes, compared with what the machine has."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from fewstep.errors import RangeError, in_units
from fewstep.measure.images import KEPT
from fewstep.resident import free_memory

PER_VALUE = 32  # bytes per value of the images that are drawn at once, and of their copies
KEPT_PER_VALUE = 12  # bytes per value of a training image: float32, and float64 beside it
ROW = 4 * 2048  # bytes of an image's features while a cell is measured: those of the Inception
MAX_SAMPLES = 10_000_000
AT_ONCE = 2**25  # values of images that are drawn at once, at most


def at_once(batch_size: int, shape: tuple[int, ...]) -> int:
    """Return the images that a process draws at once: `batch_size`, or fewer large ones."""
    return min(batch_size, max(1, AT_ONCE // math.prod(shape)))


def check_samples(
    samples: int, shape: tuple[int, ...], option: str, folder: Path, batch_size: int
) -> None:
    """Raise RangeError unless the samples of one cell can be drawn, and kept in a new folder.

    shape: of one image. option: the name of the setting, for the message. folder: of the results.
    """
    if not 2 <= samples <= MAX_SAMPLES:
        raise RangeError(f"{option} must be from 2 to {MAX_SAMPLES:,}, got {samples:,}.")
    values, there = math.prod(shape), free_memory()
    drawn = min(samples, at_once(batch_size, shape))
    if drawn * values * PER_VALUE > there:
        raise RangeError(
            f"the images that are drawn at once must fit in memory: {drawn:,} of shape {shape} "
            f"take about {in_units(drawn * values * PER_VALUE)}, and {in_units(there)} are "
            f"available. Use smaller images, or {option} of at most "
            f"{max(2, there // (values * PER_VALUE)):,}."
        )
    if not any((folder / "cells").glob("*.safetensors")):  # of those, some are there already
        check_disk(samples, shape, option, folder)


def check_disk(samples: int, shape: tuple[int, ...], option: str, folder: Path) -> None:
    """Raise RangeError unless the images of one more cell, and their features, can be kept.

    Arguments are those of `check_samples`.
    """
    values, room = math.prod(shape), free_disk(folder)
    first, each = 4 * min(samples, KEPT) * values, values + ROW
    if first + samples * each > room:
        raise RangeError(
            f"{option} must fit on the disk: {samples:,} images of shape {shape} take "
            f"{in_units(first + samples * each)} per cell, and {in_units(room)} are free at "
            f"{folder}. Use at most {max(2, (room - first) // each):,}, or another folder."
        )


def free_disk(folder: Path) -> int:
    """Return the bytes that are free where a folder is, or will be."""
    place = folder.absolute()
    return shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free


def fits(count: int, shape: tuple[int, ...]) -> bool:
    """Whether so many training images can be kept in half of the memory that is available."""
    return count * KEPT_PER_VALUE * math.prod(shape) <= free_memory() // 2
