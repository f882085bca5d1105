"""Stage one: one network for every w, in place of the conditional/unconditional pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.angle import HALF_PI, add_noise
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser, traits_of
from fewstep.distill.draw import check_interval, gaussian, uniform
from fewstep.distill.problem import Regression


@dataclass(frozen=True)
class Match:
    """Regression on the guided teacher's v, with w and phi uniform per example (math.md 4).

    Attributes:
        teacher: `Guided`, or any denoiser that obeys w.
        w: range of the guidance weight; (w, w) gives a student for one fixed w.
        phi: range of the angle; by default the angles that the teacher was trained at.
    """

    teacher: Denoiser
    w: tuple[float, float] = (0.0, 4.0)
    phi: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Raise RangeError for a range that is none."""
        check_interval("w", self.w)
        phi = traits_of(self.teacher).phi_range if self.phi is None else self.phi
        object.__setattr__(self, "phi", check_interval("phi", phi, 0.0, HALF_PI))

    def __call__(self, x: Tensor, cond: Cond, generator: torch.Generator) -> Regression:
        """Return the regression for clean x (B, *D). Costs teacher.passes evaluations."""
        assert self.phi is not None
        phi = uniform(self.phi, x, generator)
        w = uniform(self.w, x, generator)
        z = add_noise(x, gaussian(x, generator), phi)
        with torch.no_grad():
            return Regression(z, phi, cond, w, self.teacher(z, phi, cond, w))
