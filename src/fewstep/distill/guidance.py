"""Guidance distillation, stage one: one network for every w, in place of a guided pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.angle import HALF_PI, add_noise, rotate
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser, coefficient_dtype, traits_of
from fewstep.distill.draw import (
    check_free,
    check_interval,
    check_range_of_teacher,
    gaussian,
    uniform,
)
from fewstep.distill.problem import Kind, Regression
from fewstep.distill.trajectory import States, check_states, check_walk, pack, visits
from fewstep.errors import RangeError

STAGE_ONE = "stage-one"
WALK = 8


@dataclass(frozen=True)
class GuidanceDistillation:
    """Regression on the guided teacher's v, with w and phi uniform per example (math.md 4).

    Attributes:
        teacher: `Guided`, or any denoiser that obeys w.
        w_range: of the guidance weight; (w, w) gives a student for one fixed w.
        phi: range of the angle; by default the angles that the teacher was trained at.
        states: "noised" puts noise on the data; "trajectory" walks a few examples from pure noise
            by the teacher's own DDIM steps, and the images of a batch give their shape alone.
        walk: states of a trajectory: one at the noisiest angle, where all sampling starts, and
            one drawn uniformly in each of walk - 1 equal parts of the range.
    """

    teacher: Denoiser
    w_range: tuple[float, float] = (0.0, 4.0)
    phi: tuple[float, float] | None = None
    states: States = "noised"
    walk: int = WALK

    def __post_init__(self) -> None:
        """Raise RangeError for a wrong range, or states that cannot be reached."""
        traits = traits_of(self.teacher)
        check_range_of_teacher(self.w_range, traits)
        role = "the teacher of guidance distillation (stage one)"
        check_free(traits, role, "Start from the guided teacher.")
        phi = check_interval("phi", self.phi or traits.phi_range, 0.0, HALF_PI)
        object.__setattr__(self, "phi", phi)
        if check_states(self.states) == "noised":
            return
        if self.walk < 2:
            raise RangeError(f"walk = {self.walk}; it must be at least 2. Use {WALK}.")
        if phi[1] < traits.phi_range[1]:
            raise RangeError(
                f"phi ends at {phi[1]:g} and the teacher's trajectories start at "
                f"{traits.phi_range[1]:g}. Leave phi out, or use states: noised."
            )

    def __call__(self, x: Tensor, cond: Cond, generator: torch.Generator) -> Regression:
        """Return the regression for clean x (B, *D). Costs teacher.passes evaluations.

        Raises RangeError for a batch that cannot hold one trajectory, where states are of those.
        """
        assert self.phi is not None
        if self.states == "trajectory":
            return self._walked(x, cond, generator)
        phi = uniform(self.phi, x, generator)
        w = uniform(self.w_range, x, generator)
        z = add_noise(x, gaussian(x, generator), phi)
        with torch.no_grad():
            return Regression(z, phi, cond, w, self.teacher(z, phi, cond, w))

    def _walked(self, x: Tensor, cond: Cond, generator: torch.Generator) -> Regression:
        counts = visits(len(x), self.walk)
        x, cond = x[: counts[0]], conds.take(cond, slice(counts[0]))
        w = uniform(self.w_range, x, generator)
        z = gaussian(x, generator)
        phi = self._angles(x, generator)

        def step(k: int, z: Tensor, v: Tensor) -> Tensor:
            return rotate(z, v, phi[k, : len(z)] - phi[k + 1, : len(z)])

        with torch.no_grad():
            return pack(counts, z, list(phi), cond, w, lambda _, *s: self.teacher(*s), step)

    def _angles(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return (walk, T) angles, falling from the noisiest one, for trajectories x (T, *D)."""
        assert self.phi is not None
        low, high = self.phi
        shape, kept = (self.walk - 1, len(x)), coefficient_dtype(x)
        part = torch.arange(self.walk - 1, device=x.device, dtype=kept)[:, None]
        u = torch.rand(shape, generator=generator, device=x.device, dtype=kept)
        below = high - (high - low) * (part + u) / (self.walk - 1)
        return torch.cat([torch.full_like(below[:1], high), below.clamp_min(low)])


guidance_distillation = Kind(
    "guidance-distillation",
    lambda stage, teacher, w_range, _: GuidanceDistillation(
        teacher, w_range, states=stage.states or "noised"
    ),
    lambda _: STAGE_ONE,
    check_part=lambda stage, part: check_walk(stage.states, part, WALK),
)
