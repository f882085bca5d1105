"""Heun's method on the rotation: second order, two evaluations a step but for a last one of one."""

from __future__ import annotations

import math

from torch import Tensor

from fewstep.core.angle import rotate
from fewstep.core.samplers.deterministic import moves
from fewstep.core.samplers.loop import Move, Sampler, Velocity, ddim_step


def step(velocity: Velocity, z: Tensor, move: Move) -> Tensor:
    """Return z at move.to: a DDIM step by the mean of v here and v there, turned back to here.

    The velocity met at the end is turned back by h before the mean is taken (`cos h v2 - sin h
    z2`), so a constant x is still followed without error, as by DDIM. Expanding in h, the step
    is z - h v + h^2/2 dv/dphi + O(h^3). Source: Karras et al. 2022, on the angle.

    Into phi = 0 it is a DDIM step: there a state is its own x, and no network can tell the noise
    that it never had, so the mean would take away half of what is left. One such step costs
    O(h^2), which leaves the order at 2.
    """
    if calls(move) == 1:
        return ddim_step(velocity, z, move)
    h = move.phi - move.to
    v = velocity(z, move.phi)
    z_end = rotate(z, v, h)
    v_back = math.cos(h) * velocity(z_end, move.to) - math.sin(h) * z_end
    return rotate(z, 0.5 * (v + v_back), h)


def calls(move: Move) -> int:
    """Return 2, or 1 into phi = 0."""
    return 1 if move.to == 0.0 else 2


heun = Sampler("heun", moves, step, calls=calls, order=2)
