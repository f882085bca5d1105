"""Heun's method on the rotation: second order, two evaluations a step; the many-step reference."""

from __future__ import annotations

import math

from torch import Tensor

from fewstep.core.angle import rotate
from fewstep.core.samplers.deterministic import moves
from fewstep.core.samplers.loop import Move, Sampler, Velocity


def step(velocity: Velocity, z: Tensor, move: Move) -> Tensor:
    """Return z at move.to: a DDIM step by the mean of v here and v there, turned back to here.

    The velocity met at the end is turned back by h before the mean is taken (`cos h v2 - sin h
    z2`), so a constant x is still followed without error, as by DDIM. Expanding in h, the step
    is z - h v + h^2/2 dv/dphi + O(h^3). Source: Karras et al. 2022, on the angle.
    """
    h = move.phi - move.to
    v = velocity(z, move.phi)
    z_end = rotate(z, v, h)
    v_back = math.cos(h) * velocity(z_end, move.to) - math.sin(h) * z_end
    return rotate(z, 0.5 * (v + v_back), h)


heun = Sampler("heun", moves, step, calls=2, order=2)
