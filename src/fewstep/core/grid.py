"""Grids: the decreasing angles that a sampler visits, as Python floats (float64).

A grid of N steps has N + 1 angles, from the noisiest down to the cleanest. A *clock* is a
function N -> grid: every family of models has one (math.md sections 1 and 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import Tensor

from fewstep.core.angle import HALF_PI
from fewstep.errors import GridError

Grid: TypeAlias = tuple[float, ...]
Clock: TypeAlias = Callable[[int], Grid]
Split: TypeAlias = Callable[[float, float, int], Grid]


MAX_STEPS = 100_000  # far beyond what changes a picture; more would only hang


def check_steps(steps: int) -> int:
    """Return steps. Raises GridError unless it is a whole number from 1 to MAX_STEPS."""
    if isinstance(steps, bool) or not hasattr(steps, "__index__"):
        raise GridError(f"steps must be a whole number, got {steps!r}. Pass steps=8, for example.")
    if steps < 1:
        raise GridError(f"steps = {steps}; a grid needs at least 1 step. Ask for 1 or more.")
    if steps > MAX_STEPS:
        raise GridError(
            f"steps must be at most {MAX_STEPS}, got {str(steps)[:40]}. Use fewer steps."
        )
    return steps


def check_grid(grid: Sequence[float]) -> Grid:
    """Return the grid as a tuple. Raises GridError unless it falls strictly within [0, pi/2]."""
    out = tuple(float(phi) for phi in grid)
    if len(out) < 2:
        raise GridError(f"a grid of {len(out)} angles; it needs at least 2 (one step). Add angles.")
    if not all(0.0 <= phi <= HALF_PI for phi in out):
        raise GridError(f"grid {out}; angles must lie in [0, pi/2] = [0, {HALF_PI:.6f}].")
    for i, (a, b) in enumerate(zip(out, out[1:], strict=False)):
        if a <= b:
            raise GridError(
                f"grid angles {i} and {i + 1} are {a:.6g}, {b:.6g}; a grid must fall from noise "
                "to clean. Reverse it, or remove the repeated angle."
            )
    return out


def cosine(steps: int) -> Grid:
    """Return N equal angles from pi/2 to exactly 0: phi_i = (pi/2) i / N. Source: math.md 1.

    On the native clock of 1,024 steps this is diffusers' "trailing" spacing for every N that
    divides 1,024. Raises GridError unless steps >= 1.
    """
    return tuple(HALF_PI * (i / check_steps(steps)) for i in range(steps, -1, -1))


def discrete(table: Tensor, steps: int, *, last: float = 0.0) -> Grid:
    """Return the "trailing" grid of a discrete table of angles, as diffusers visits it.

    Args:
        table: (T,) increasing angles in radians, one a timestep.
        steps: N; must divide T, since diffusers' DDIM steps by T // N whatever the spacing, and
            with another N its previous timestep is not the next entry of its own grid.
        last: the angle after the last step; 0 where `set_alpha_to_one`, else `table[0]`.

    Raises:
        GridError: N < 1, or N does not divide T; names the divisors near it.
    """
    total = len(table)
    if total % check_steps(steps):
        near = [n for n in range(1, total + 1) if total % n == 0 and n <= 2 * steps][-4:]
        raise GridError(
            f"steps = {steps} does not divide this model's table of {total} timesteps, so stock "
            f"schedulers would step to other angles. Use one of {near}."
        )
    stride = total // steps
    return check_grid([*(float(table[i]) for i in range(total - 1, -1, -stride)), last])


def shifted_flow(steps: int, *, shift: float = 1.0) -> Grid:
    """Return N steps of rectified flow's time, shifted: s' = shift s / (1 + (shift - 1) s).

    Angles are atan(s' / (1 - s')). Raises GridError unless steps >= 1 and shift > 0.
    """
    if not shift > 0:
        raise GridError(f"shift = {shift}; it must be above 0. Use 1 for no shift.")
    times = [i / check_steps(steps) for i in range(steps, -1, -1)]
    shifted = [shift * s / (1.0 + (shift - 1.0) * s) for s in times]
    return check_grid([math.atan2(s, 1.0 - s) for s in shifted])


def equal_angles(phi: float, to: float, parts: int) -> Grid:
    """Return the parts + 1 angles from phi to `to`, equally spaced, either direction."""
    return (*(phi + (to - phi) * k / parts for k in range(parts)), to)
