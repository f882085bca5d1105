"""One loop for every sampler. A sampler is data: the moves it makes on a grid, and one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from fewstep.core.angle import renoise, rotate
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser, coefficient_dtype
from fewstep.core.grid import Grid, check_grid
from fewstep.core.seed import Noise


class Move(NamedTuple):
    """From angle `phi` to angle `to`; then, where `back` > `to`, up to `back` by fresh noise."""

    phi: float
    to: float
    back: float


@dataclass(frozen=True)
class Progress:
    """Argument of a callback after each move: the state `z` (B, *D) at angle `phi`."""

    index: int
    count: int
    phi: float
    z: Tensor


Callback: TypeAlias = Callable[[Progress], None]
Velocity: TypeAlias = Callable[[Tensor, float], Tensor]
StepFunction: TypeAlias = Callable[[Velocity, Tensor, Move], Tensor]


def ddim_step(velocity: Velocity, z: Tensor, move: Move) -> Tensor:
    """Return z (B, *D) rotated from move.phi to move.to, by one call. Source: math.md 2."""
    return rotate(z, velocity(z, move.phi), move.phi - move.to)


def once(_: Move) -> int:
    """Return 1: a step of one call."""
    return 1


@dataclass(frozen=True)
class Sampler:
    """How to get from one end of a grid to the other.

    Attributes:
        name: as users write it.
        moves: grid -> the moves made on it, in order.
        step: (velocity, z, move) -> z at move.to.
        calls: move -> the denoiser calls it costs.
        encodes: True where it goes from clean to noise.
        order: of the error in the step size; None for a stochastic sampler.
        stride: how many steps of the grid a move goes down: what a student is trained for.
        jumps: it is for models whose v leads to the end of the trajectory in one rotation, from any
            angle (consistency models), and not for those whose v is the velocity.
    """

    name: str
    moves: Callable[[Grid], list[Move]]
    step: StepFunction = ddim_step
    calls: Callable[[Move], int] = once
    encodes: bool = False
    order: int | None = 1
    stride: int = 1
    jumps: bool = False

    def evaluations(self, denoiser: Denoiser, grid: Grid) -> int:
        """Return the network evaluations an example costs on this grid."""
        return sum(self.calls(move) for move in self.moves(grid)) * denoiser.passes


def run(
    sampler: Sampler,
    denoiser: Denoiser,
    z: Tensor,
    cond: Cond,
    w: Tensor,
    grid: Grid,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Return the state at the end of the grid, which is x for a decoding sampler.

    This bare loop does not check what the denoiser was made for; `sample` does.

    Args:
        sampler: one of `fewstep.core.samplers.SAMPLERS`, or your own.
        denoiser: gives v.
        z: the state where the sampler starts: noise, or x for an encoding sampler.
        cond: a condition batch of B.
        w: (B,) guidance weights.
        grid: decreasing angles. Raises GridError where they are not.
        noise: fresh noise, needed where the sampler adds some.
        callback: called with a `Progress` after every move.
    """
    moves = sampler.moves(check_grid(grid))
    kept = coefficient_dtype(z)

    def velocity(state: Tensor, phi: float) -> Tensor:
        angles = torch.full((len(state),), phi, dtype=kept, device=state.device)
        return denoiser(state, angles, cond, w)

    with torch.no_grad():
        for index, move in enumerate(moves):
            z = sampler.step(velocity, z, move)
            if move.back > move.to:
                if noise is None:
                    raise ValueError(f"the sampler {sampler.name!r} needs noise=Noise(seed, index)")
                z = renoise(z, noise.like(z), move.to, move.back)
            if callback is not None:
                callback(Progress(index, len(moves), move.back, z))
    return z
