"""Sample distillation: a denoiser of the samples that a guided teacher draws, with w as an input.

For w other than 0, the guided velocity (1 + w) v_cond - w v_uncond is not the score of the samples
that it generates. A network that is trained on these samples learns their score at every noise
level, which distribution matching needs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.angle import add_noise, rotate, v_from_x_eps
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser, traits_of
from fewstep.distill.draw import gaussian, uniform
from fewstep.distill.problem import Kind, Regression
from fewstep.distill.steps import StepDistillation

SAMPLED = "sampled"
STEPS = 16  # of second order, that draw a sample
STATES = 8  # noised states of each sample


@dataclass(frozen=True)
class SampleDistillation:
    """Regression on the true velocity of the teacher's own samples, at the w they were drawn with.

    The samples are drawn while it is trained: of a batch of B, max(1, B // 8) trajectories start at
    pure noise, with w uniform in its range; each sample is noised at several angles. The images of
    the batch give their shape alone.

    Attributes:
        teacher: `Guided`, or any denoiser that obeys w and takes any number of steps.
        w_range: of the guidance weight.
        steps: of the teacher's sampler, of second order (math.md 5).
        states: noised states of each sample.
    """

    teacher: Denoiser
    w_range: tuple[float, float] = (0.0, 4.0)
    steps: int = STEPS
    states: int = STATES
    _sampler: StepDistillation = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise RangeError for a range that is none, or a teacher of a fixed number of steps."""
        sampler = StepDistillation(
            self.teacher, 1, substeps=self.steps, order=2, w_range=self.w_range
        )
        object.__setattr__(self, "_sampler", sampler)

    def __call__(self, x: Tensor, cond: Cond, generator: torch.Generator) -> Regression:
        """Return the regression for B examples, at steps x teacher.passes / states evaluations."""
        few = max(1, len(x) // self.states)
        owner = torch.arange(len(x), device=x.device) % few
        kinds, u = conds.take(cond, slice(few)), gaussian(x[:few], generator)
        w = uniform(self.w_range, u, generator)
        drawn = self.draw(u, kinds, w)[owner]
        phi = uniform(traits_of(self.teacher).phi_range, x, generator)
        eps = gaussian(x, generator)
        target = v_from_x_eps(drawn, eps, phi)
        return Regression(
            add_noise(drawn, eps, phi), phi, conds.take(kinds, owner), w[owner], target
        )

    def draw(self, u: Tensor, cond: Cond, w: Tensor) -> Tensor:
        """Return the teacher's samples (B, *D) from noise u (B, *D) at guidance weights w (B,)."""
        (move,) = self._sampler.moves
        first = torch.zeros(len(u), dtype=torch.long, device=u.device)
        return rotate(u, self._sampler.target(u, first, cond, w), move.phi - move.to)


sample_distillation = Kind(
    "sample-distillation",
    lambda _, teacher, w_range, __: SampleDistillation(teacher, w_range),
    lambda _: SAMPLED,
    frozenset({"pool"}),
    calls=lambda _, batch: STEPS * max(1, batch // STATES),
    needs_images=lambda _: False,
)
