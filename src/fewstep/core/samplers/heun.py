"""Heun's method on the rotation: second order, two evaluations per step and one in the last."""

from __future__ import annotations

import math

from torch import Tensor

from fewstep.core.angle import rotate
from fewstep.core.samplers.deterministic import moves
from fewstep.core.samplers.loop import Move, Sampler, Velocity, ddim_step


def step(velocity: Velocity, z: Tensor, move: Move) -> Tensor:
    """Return z at move.to: a DDIM step with the average of the velocities at its two ends.

    The velocity at the end is rotated back by h before averaging (`cos h v2 - sin h z2`), so a
    constant x is followed without error, as with DDIM. Expanding in h, the step is z - h v +
    h^2/2 dv/dphi + O(h^3). Source: Karras et al. 2022, in terms of the angle.

    The last step uses DDIM: at phi = 0 there is no noise left to predict, and averaging would
    leave half of it in the image. One such step costs O(h^2), so the order stays 2.
    """
    if calls(move) == 1:
        return ddim_step(velocity, z, move)
    h = move.phi - move.to
    v = velocity(z, move.phi)
    z_end = rotate(z, v, h)
    v_back = math.cos(h) * velocity(z_end, move.to) - math.sin(h) * z_end
    return rotate(z, 0.5 * (v + v_back), h)


def calls(move: Move) -> int:
    """Return the denoiser calls of a move: 2, or 1 where it ends at phi = 0."""
    return 1 if move.to == 0.0 else 2


heun = Sampler("heun", moves, step, calls=calls, order=2)
