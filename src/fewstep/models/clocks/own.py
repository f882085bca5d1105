"""The clock of a module of the user's own: angles and velocities, as the module takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Traits, traits_of
from fewstep.core.grid import Grid
from fewstep.errors import GridError, ShapeError

if TYPE_CHECKING:
    from diffusers import DDIMScheduler


class OwnClock:
    """Timesteps are the angles themselves, and grids are what the module's `traits` say."""

    name = "own"
    prediction = None

    def __len__(self) -> int:
        """Return 0: there are none."""
        return 0

    @property
    def phis(self) -> Tensor:
        """No angles."""
        return torch.zeros(0, dtype=torch.float64)

    def grid(self, steps: int) -> Grid:
        """Raise GridError: only the module's `traits` know."""
        raise GridError("a module of your own has no timesteps; its grids are in its traits.")

    def traits(self, network: Any) -> Traits:
        """Return the module's own traits."""
        return traits_of(network)

    def place(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Return phi twice."""
        return phi, phi

    def state(self, z: Tensor, phi: Tensor) -> Tensor:
        """Return z."""
        return z

    def velocity(self, out: Tensor, z: Tensor, phi: Tensor) -> Tensor:
        """Return the answer as it is."""
        return out

    def scheduler(self) -> DDIMScheduler:
        """Raise ShapeError: no stock scheduler is known to step as the module expects."""
        raise ShapeError("a module of your own has no stock scheduler. Sample it with fewstep.")


OWN_CLOCK = OwnClock()
