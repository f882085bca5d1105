"""The native clock: 1,024 timesteps at equal angles, v-prediction, as a stock DDIMScheduler.

Grids for every power of two are exact and nested: timestep k stands at `(pi/2)(k + 1)/1024`,
and N "trailing" DDIM steps of the stock scheduler visit the angles of `cosine(N)`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from fewstep.core.angle import HALF_PI
from fewstep.models.card import CLOCK as CLOCK

if TYPE_CHECKING:
    from diffusers import DDIMScheduler

TIMESTEPS = 1024


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
