"""The teacher's own training: the true velocity, with labels dropped at random."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.angle import HALF_PI, add_noise, v_from_x_eps
from fewstep.core.cond import Cond, Copies
from fewstep.distill.draw import check_interval, gaussian, uniform
from fewstep.distill.problem import Regression
from fewstep.errors import RangeError


@dataclass(frozen=True)
class Pretrain:
    """Regression on the true v = cos(phi) eps - sin(phi) x, phi uniform (math.md 1 and 3).

    Attributes:
        null_cond: stands in for the label where it is dropped; a condition batch of 1.
        dropout: how often, in [0, 1]. Classifier-free guidance needs some (Ho & Salimans 2022).
        phi: range of the angle.
    """

    null_cond: Cond
    dropout: float = 0.1
    phi: tuple[float, float] = (0.0, HALF_PI)
    _nulls: Copies = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise RangeError for a dropout or angles that are out of range."""
        if not 0.0 <= self.dropout <= 1.0:
            raise RangeError(f"dropout = {self.dropout}; it must lie in [0, 1]. Use 0.1, say.")
        check_interval("phi", self.phi, 0.0, HALF_PI)

    def __call__(self, x: Tensor, cond: Cond, generator: torch.Generator) -> Regression:
        """Return the regression for clean x (B, *D)."""
        phi = uniform(self.phi, x, generator)
        eps = gaussian(x, generator)
        dropped = uniform((0.0, 1.0), x, generator) < self.dropout
        cond = conds.replace(cond, dropped, conds.once(self.null_cond, x.device, self._nulls))
        w = torch.zeros_like(phi)
        return Regression(add_noise(x, eps, phi), phi, cond, w, v_from_x_eps(x, eps, phi))
