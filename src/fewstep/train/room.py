"""How much memory a process may use on this machine."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import torch

_CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_limit(device: torch.device) -> int:
    """Return the bytes that a process may hold on a device, those that it holds now included.

    On CUDA that is the GPU's memory. On the CPU it is the least of the machine's memory, the
    limit of the container, and the limit of the process (ulimit -v).
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in _CGROUP:
        try:
            limits.append(int(Path(name).read_text(encoding="ascii")))
        except (OSError, ValueError):  # "max", or no such file
            continue
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        # Address space is reserved for more than what is in use.
        limits.append(soft - _reserved() + _resident())
    return max(0, min(limits))


def _reserved() -> int:
    return _statm(0)


def _resident() -> int:
    return _statm(1)


def _statm(field: int) -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[field])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
