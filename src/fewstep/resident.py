"""The memory that this process holds, has held, and may still take; nothing heavy is imported."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")
MEMINFO = Path("/proc/meminfo")
CONTAINER = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def resident_peak() -> int:
    """Return the most memory that this process has held, in bytes.

    Linux's getrusage begins with what the parent held before the exec, and its status does not.
    """
    found = _field(STATUS, "VmHWM:")
    if found is not None:
        return found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_now() -> int:
    """Return the memory that this process holds, in bytes; its peak where no more is known."""
    found = _field(STATUS, "VmRSS:")
    return resident_peak() if found is None else found


def free_memory() -> int:
    """Return the bytes that this process can still take.

    That is the least of what the machine has available, what the container allows, and what the
    limit of the process (ulimit -v) allows. Where the system does not say what is available, all
    of the machine's memory counts.
    """
    held = resident_now()
    available = _field(MEMINFO, "MemAvailable:")
    if available is None:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") - held
    limits = [available]
    for path in CONTAINER:
        try:
            limits.append(int(path.read_text(encoding="ascii")) - held)
        except (OSError, ValueError):  # "max", or no such file
            continue
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        # Address space is reserved for more than what is in use.
        limits.append(soft - (_field(STATUS, "VmSize:") or 0))
    return max(0, min(limits))


def _field(path: Path, name: str) -> int | None:
    """Return the value of a line such as "MemAvailable: 1024 kB", in bytes."""
    if not path.is_file():
        return None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return None
