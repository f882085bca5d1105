"""Refuse at once what cannot fit into the memory of this machine."""

from __future__ import annotations

import math
import resource
from collections.abc import Sequence
from pathlib import Path

from fewstep.errors import RangeError, in_units

_COPIES = 4  # noise, state, image and picture of each
_FLOAT = 4  # bytes


def check_images(count: int, shape: Sequence[int]) -> None:
    """Raise RangeError where `count` images of shape (C, H, W) do not fit into free memory."""
    need, free = _COPIES * _FLOAT * count * math.prod(shape), free_memory()
    if free is not None and need > free:
        raise RangeError(
            f"the images of one command must fit into memory, got {count:,} images that need "
            f"about {in_units(need)}, and {in_units(free)} are free. Draw fewer images "
            "per command."
        )


def free_memory() -> int | None:
    """Return the bytes that this process can still take; None where the system does not say."""
    found = [f for f in (_available(), _below_limit(), _below_container()) if f is not None]
    return max(0, min(found)) if found else None


def _available() -> int | None:
    return _field(Path("/proc/meminfo"), "MemAvailable:")


def _below_limit() -> int | None:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = _field(Path("/proc/self/status"), "VmSize:")
    return None if limit == resource.RLIM_INFINITY or used is None else limit - used


def _below_container() -> int | None:
    try:
        most = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return None if most == "max" else int(most)
    except (OSError, ValueError):
        return None


def _field(path: Path, name: str) -> int | None:
    """Return the value of a line such as "MemAvailable: 1024 kB", in bytes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith(name)]
    return int(values[0]) * 1024 if values else None
