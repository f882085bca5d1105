"""The encoder: the same rotation backwards, from an image to its noise (math.md section 7)."""

from __future__ import annotations

from fewstep.core.grid import Grid
from fewstep.core.samplers.deterministic import moves as down
from fewstep.core.samplers.loop import Move, Sampler


def moves(grid: Grid) -> list[Move]:
    """Return the deterministic sampler's moves in reverse, from clean to noise."""
    return [Move(phi, to, to) for to, phi, _ in reversed(down(grid))]


encode = Sampler("encode", moves, encodes=True)
