"""Where fewstep keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """Return the folder of all caches: $FEWSTEP_CACHE, or fewstep in the user's cache."""
    given = os.environ.get("FEWSTEP_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fewstep"
