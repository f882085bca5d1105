"""The deterministic sampler: N DDIM steps, each a rotation (math.md sections 2 and 6)."""

from __future__ import annotations

from fewstep.core.grid import Grid
from fewstep.core.samplers.loop import Move, Sampler


def moves(grid: Grid) -> list[Move]:
    """Return one move from each angle to the next."""
    return [Move(phi, to, to) for phi, to in zip(grid, grid[1:], strict=False)]


deterministic = Sampler("deterministic", moves)
