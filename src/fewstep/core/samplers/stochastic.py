"""The stochastic sampler: two strides down, one stride of fresh noise up (math.md section 6)."""

from __future__ import annotations

from fewstep.core.grid import Grid
from fewstep.core.samplers.loop import Move, Sampler


def moves(grid: Grid) -> list[Move]:
    """Return N moves: two strides down and one up, and a last one of a single stride."""
    down = [Move(a, c, b) for a, b, c in zip(grid, grid[1:], grid[2:], strict=False)]
    return [*down, Move(grid[-2], grid[-1], grid[-1])]


stochastic = Sampler("stochastic", moves, order=None, stride=2)
