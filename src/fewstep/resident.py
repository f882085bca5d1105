"""The memory that this process holds, and has held; a module that imports nothing heavy."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def resident_peak() -> int:
    """Return the most memory that this process has held, in bytes.

    Linux's getrusage begins with what the parent held before the exec, and its status does not.
    """
    found = _status("VmHWM")
    if found is not None:
        return found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_now() -> int:
    """Return the memory that this process holds, in bytes; its peak where no more is known."""
    found = _status("VmRSS")
    return resident_peak() if found is None else found


def _status(name: str) -> int | None:
    if not STATUS.is_file():
        return None
    for line in STATUS.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return None
