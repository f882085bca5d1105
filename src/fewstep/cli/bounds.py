"""Refuse at once what cannot fit into the memory of this machine."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fewstep.errors import RangeError, in_units
from fewstep.resident import free_memory

_COPIES = 4  # noise, state, image and picture of each
_FLOAT = 4  # bytes


def check_images(count: int, shape: Sequence[int]) -> None:
    """Raise RangeError where `count` images of shape (C, H, W) do not fit into free memory."""
    need, free = _COPIES * _FLOAT * count * math.prod(shape), free_memory()
    if need > free:
        raise RangeError(
            f"the images of one command must fit into memory, got {count:,} images that need "
            f"about {in_units(need)}, and {in_units(free)} are free. Draw fewer images "
            "per command."
        )
