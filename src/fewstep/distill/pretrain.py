"""Pretraining, the teacher's own: the true velocity, with labels dropped at random."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.core.angle import HALF_PI, add_noise, v_from_x_eps
from fewstep.core.cond import Cond, Copies
from fewstep.core.denoiser import Denoiser, traits_of
from fewstep.distill.draw import check_dropout, check_interval, drop, gaussian, uniform
from fewstep.distill.problem import Kind, Regression
from fewstep.errors import RangeError

if TYPE_CHECKING:
    from fewstep.distill.plan import Stage

TEACHER = "teacher"
DROPOUT = 0.1


@dataclass(frozen=True)
class Pretrain:
    """Regression on the true v = cos(phi) eps - sin(phi) x, phi uniform (math.md 1 and 3).

    Attributes:
        null_cond: stands in for the label where it is dropped; a condition batch of 1.
        dropout: how often, in [0, 1]. Classifier-free guidance needs some (Ho & Salimans 2022).
        phi: range of the angle.
    """

    null_cond: Cond
    dropout: float = DROPOUT
    phi: tuple[float, float] = (0.0, HALF_PI)
    _nulls: Copies = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise RangeError for a dropout or angles that are out of range."""
        check_dropout(self.dropout)
        check_interval("phi", self.phi, 0.0, HALF_PI)

    def __call__(self, x: Tensor, cond: Cond, generator: torch.Generator) -> Regression:
        """Return the regression for clean x (B, *D)."""
        phi = uniform(self.phi, x, generator)
        eps = gaussian(x, generator)
        cond = drop(cond, self.null_cond, self.dropout, x, generator, self._nulls)
        w = torch.zeros_like(phi)
        return Regression(add_noise(x, eps, phi), phi, cond, w, v_from_x_eps(x, eps, phi))


def _problem(stage: Stage, model: Denoiser, _: tuple[float, float], null: Cond | None) -> Pretrain:
    if null is None:
        raise RangeError("pretraining must be given a null condition, got none. Pass null_cond.")
    dropout = DROPOUT if stage.dropout is None else stage.dropout
    return Pretrain(null, dropout, traits_of(model).phi_range)


pretraining = Kind("pretraining", _problem, lambda _: TEACHER, frozenset({"dropout"}))
