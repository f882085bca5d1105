"""The native clock: 1,024 timesteps at equal angles, v-prediction, as a stock DDIMScheduler.

Grids for every power of two are exact and nested: timestep k stands at `(pi/2)(k + 1)/1024`,
and N "trailing" DDIM steps of the stock scheduler visit the angles of `cosine(N)`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.core.angle import HALF_PI
from fewstep.core.denoiser import Traits
from fewstep.core.grid import Grid, cosine
from fewstep.models.card import CLOCK as CLOCK

if TYPE_CHECKING:
    from diffusers import DDIMScheduler

TIMESTEPS = 1024


class NativeClock:
    """The clock of the networks that fewstep trains from scratch; its grids are `core.grid`'s."""

    name = CLOCK
    prediction = None

    def __len__(self) -> int:
        """Return the number of timesteps."""
        return TIMESTEPS

    @property
    def phis(self) -> Tensor:
        """Angles of the timesteps, (1024,) float64 radians, rising."""
        return HALF_PI * (torch.arange(TIMESTEPS, dtype=torch.float64) + 1.0) / TIMESTEPS

    def grid(self, steps: int) -> Grid:
        """Return `cosine(steps)`."""
        return cosine(steps)

    def traits(self, network: Any) -> Traits:
        """Return the core's own grids, over all angles."""
        return Traits()

    def place(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Return (phi, timestep), (B,) each."""
        return phi, timestep_from_phi(phi)

    def state(self, z: Tensor, phi: Tensor) -> Tensor:
        """Return z."""
        return z

    def velocity(self, out: Tensor, z: Tensor, phi: Tensor) -> Tensor:
        """Return what the network predicts, v, in the dtype of z: autocast's answer is shorter."""
        return out.to(z.dtype)

    def scheduler(self) -> DDIMScheduler:
        """Return the stock scheduler of this clock."""
        return native_scheduler()


NATIVE_CLOCK = NativeClock()


def timestep_from_phi(phi: Tensor) -> Tensor:
    """Return the fractional timestep (B,) in [-1, 1023] at angles phi (B,), float32."""
    return (phi * (TIMESTEPS / HALF_PI) - 1.0).float()


def native_scheduler() -> DDIMScheduler:
    """Return the stock scheduler of the native clock: its float32 steps are our rotations."""
    from diffusers import DDIMScheduler

    squares = [math.cos(HALF_PI * k / TIMESTEPS) ** 2 for k in range(TIMESTEPS)] + [0.0]
    betas = [1.0 - b / a for a, b in zip(squares, squares[1:], strict=False)]
    scheduler: DDIMScheduler = DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        trained_betas=betas,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
    )
    return scheduler
