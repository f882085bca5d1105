"""What a clock is: how the angles of a model are related to the timesteps of its network."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from fewstep.core.denoiser import Traits
from fewstep.core.grid import Grid


class Clock(Protocol):
    """The angles that a network was trained at, what it predicts there, and its stock scheduler."""

    @property
    def name(self) -> str:
        """The clock's name in the card."""
        ...

    @property
    def prediction(self) -> str | None:
        """What the card says of it: "epsilon", "v_prediction", "sample" (x) or "flow"; None: v."""
        ...

    @property
    def phis(self) -> Tensor:
        """Angles of the timesteps, (T,) float64 radians, rising."""
        ...

    def __len__(self) -> int:
        """Return the number of timesteps T."""
        ...

    def grid(self, steps: int) -> Grid:
        """Return the angles of N steps of the stock scheduler. Raises GridError."""
        ...

    def traits(self, network: Any) -> Traits:
        """Return grid, split and range of angles, as the core understands them."""
        ...

    def place(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Return (phi, timestep), (B,) each: where the network is asked."""
        ...

    def state(self, z: Tensor, phi: Tensor) -> Tensor:
        """Return what the network is given in place of z (B, *D), in its dtype."""
        ...

    def velocity(self, out: Tensor, z: Tensor, phi: Tensor) -> Tensor:
        """Return v (B, *D) of what the network predicts at z (B, *D)."""
        ...

    def scheduler(self) -> Any:
        """Return the stock scheduler whose N steps are those of the clock's grid."""
        ...
