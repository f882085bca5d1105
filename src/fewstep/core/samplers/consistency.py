"""Multistep consistency sampling: jump to clean, add fresh noise, jump again (Song et al. 2023)."""

from __future__ import annotations

from fewstep.core.grid import Grid
from fewstep.core.samplers.loop import Move, Sampler


def moves(grid: Grid) -> list[Move]:
    """Return N moves: from each angle to clean, and back up to the next angle but for the last."""
    ups = (*grid[1:-1], 0.0)
    return [Move(phi, 0.0, up) for phi, up in zip(grid, ups, strict=False)]


consistency = Sampler("consistency", moves, order=None, jumps=True)
