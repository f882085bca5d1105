"""Samplers, one per file. A new sampler is a new file and one line in SAMPLERS."""

from __future__ import annotations

from fewstep.core.samplers.consistency import consistency
from fewstep.core.samplers.deterministic import deterministic
from fewstep.core.samplers.encode import encode
from fewstep.core.samplers.heun import heun
from fewstep.core.samplers.loop import Callback, Move, Progress, Sampler, run
from fewstep.core.samplers.stochastic import stochastic
from fewstep.errors import RangeError, did_you_mean

SAMPLERS: dict[str, Sampler] = {
    s.name: s for s in (deterministic, stochastic, consistency, encode, heun)
}


def get_sampler(name: str) -> Sampler:
    """Return the sampler of that name. Raises RangeError, which lists the names."""
    if str(name) not in SAMPLERS:
        raise RangeError(
            f"sampler must be one of {', '.join(SAMPLERS)}, got {name!r}."
            + did_you_mean(str(name), SAMPLERS)
        )
    return SAMPLERS[name]


__all__ = [
    "SAMPLERS",
    "Callback",
    "Move",
    "Progress",
    "Sampler",
    "get_sampler",
    "run",
]
