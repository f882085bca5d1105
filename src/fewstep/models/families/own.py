"""Modules of the user's own: called as they are, `v = module(z, phi, cond, w)`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.models.card import OWN as NAME
from fewstep.models.card import Card
from fewstep.models.families.family import Family


def _call(network: Any, z: Tensor, timestep: Tensor, cond: Cond, w: Tensor | None) -> Tensor:
    v: Tensor = network(z, timestep, cond, w)  # on its own clock, timesteps are angles
    return v


def _anything(network: Any, card: Card, cond: Cond) -> None:
    """Only the module knows which conditions it takes."""


OWN = Family(
    name=NAME,
    native=True,
    call=_call,
    slot="value",
    check_cond=_anything,
    lora=False,
)
