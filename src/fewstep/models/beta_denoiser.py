"""A network of your own that was trained on a table of betas, as a denoiser."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from fewstep.core.cond import Cond
from fewstep.core.denoiser import Traits
from fewstep.models.clocks.betas import BetaClock


class BetaDenoiser(nn.Module):
    """The velocity v = model(z, phi, cond, w) of a network that predicts eps, v or x.

    The network is called as `network(z, timestep, cond)`, or `network(z, timestep, cond, w)` with
    `takes_w`: z (B, *D); timestep (B,), fractional between the table's angles, in [0, T - 1]. It is
    asked inside its table alone: sampling starts at the last angle of the table, not at pi/2, where
    an eps-network would be divided by zero.

    Attributes:
        network: the module of the user.
        clock: the table, and what the network predicts; see `BetaClock.from_betas`.
    """

    passes = 1

    def __init__(
        self,
        network: nn.Module,
        clock: BetaClock,
        *,
        shape: tuple[int, ...] | None = None,
        takes_w: bool = False,
    ) -> None:
        """Wrap a network. shape: of one example, for `fewstep.sample`."""
        super().__init__()
        self.network = network
        self.clock = clock
        self.takes_w = takes_w
        self._shape = shape

    @property
    def traits(self) -> Traits:
        """The table's clock, and where the network lives."""
        first = next(self.network.parameters(), None)
        return replace(
            self.clock.traits(self.network),
            shape=self._shape,
            device=None if first is None else first.device,
            dtype=None if first is None else first.dtype,
        )

    def forward(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        """Return v (B, *D), converted from what the network predicts (math.md 1)."""
        inside, timestep = self.clock.place(phi)
        more = (w,) if self.takes_w else ()
        out: Tensor = self.network(z, timestep, cond, *more)
        return self.clock.velocity(out, z, inside)
