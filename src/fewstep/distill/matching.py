"""Distribution matching: a one-step student whose samples are distributed as the teacher's.

Two regressions, of two networks that are trained side by side (Yin et al. 2024, DMD2, here without
data). The *fake score* learns to denoise the student's own samples. The student's target is its own
sample, moved towards what the *real score* makes of it at a drawn noise level, and away from what
the fake score makes of it. Student and scores have one w.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from fewstep.core import cond as conds
from fewstep.core.angle import add_noise, expand, rotate, v_from_x_eps, x_from_v
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser, coefficient_dtype, traits_of
from fewstep.core.grid import Grid, check_grid
from fewstep.distill.draw import check_free, check_range_of_teacher, gaussian, uniform
from fewstep.distill.pretrain import TEACHER
from fewstep.distill.problem import Kind, Regression
from fewstep.errors import RangeError, RecipeError

if TYPE_CHECKING:
    from fewstep.distill.plan import Stage

FAKES = 3  # examples of the fake score for each of the student
SLOWER = 0.05  # the student's learning rate, as a part of the fake score's
MARGIN = 0.1  # of the range of angles at both its ends, where no score is asked; as in DMD
LEAST = 1e-3  # mean error of a denoised image below which the step is no longer made larger


class StudentAndScore(nn.Module):
    """A student and the score of its own samples, trained as one module.

    The first max(1, B // 4) examples of a batch are the student's, the others the score's. The
    average, checkpoints and an exact resume are then those of any module; AdamW treats every weight
    by itself, so that one optimiser does what two would do. The student learns more slowly than the
    fake score, which must follow it: at one rate both ran away on the digits.

    Attributes:
        student: a denoiser of one step.
        fake: the fake score, a denoiser that is asked at every angle.
    """

    passes = 1
    lr_scales: ClassVar = {"student": SLOWER}

    def __init__(self, student: nn.Module, fake: nn.Module) -> None:
        """Hold the two modules, each a denoiser."""
        super().__init__()
        self.student, self.fake = student, fake

    def forward(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        """Return v (B, *D): the student's, then the fake score's."""
        n = students_in(len(z))
        first, rest = slice(n), slice(n, None)
        answers = [
            network(z[part], phi[part], conds.take(cond, part), w[part])
            for network, part in ((self.student, first), (self.fake, rest))
        ]
        return torch.cat(answers)

    @property
    def has_unused_weights(self) -> bool:
        """Whether some weights have no effect on the output, and so get no gradient."""
        return any(getattr(m, "has_unused_weights", False) for m in (self.student, self.fake))

    def checkpoint_activations(self) -> None:
        """From now on compute activations again in the backward pass, to save memory."""
        for network in (self.student, self.fake):
            network.checkpoint_activations()  # type: ignore[operator]

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Answer without dropout and without gradients, for a `with` block."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)


def students_in(batch: int) -> int:
    """Return how many examples of a batch are the student's. Raises RangeError for too few."""
    if batch < 2:
        raise RangeError(
            f"distribution matching must have a batch of at least 2, for student and fake score, "
            f"got {batch}. Use a larger batch (a part of one, with several)."
        )
    return max(1, batch // (1 + FAKES))


@dataclass(frozen=True)
class DistributionMatching:
    """The student's regression on x + c (x_real - x_fake), and the fake score's on its samples.

    Attributes:
        teacher: the real score: a denoiser of any number of steps that takes w. The stage
            `sample-distillation` makes one of the guided teacher's own samples. A `Guided` pair can
            be given, but what it says at w > 0 is the score of no distribution.
        networks: student and fake score, in the module that is trained.
        w_range: of the guidance weight.
        grid: the two angles of the student's step; by default the real score's clock at 1 step.
    """

    teacher: Denoiser
    networks: StudentAndScore | None = None
    w_range: tuple[float, float] = (0.0, 4.0)
    grid: Grid | None = None

    def __post_init__(self) -> None:
        """Raise RangeError for a range that is none or too wide, or a real score of fixed steps."""
        traits = traits_of(self.teacher)
        check_range_of_teacher(self.w_range, traits)
        role = "the real score of distribution matching"
        check_free(traits, role, "Use the teacher, or a stage without steps.")
        object.__setattr__(self, "grid", check_grid(self.grid or traits.clock(1)))

    def __call__(self, x: Tensor, cond: Cond, generator: torch.Generator) -> Regression:
        """Return both regressions; of images x (B, *D) only the shape is used.

        Raises RangeError for a batch of 1, which cannot be divided.
        """
        assert self.networks is not None
        assert self.grid is not None
        n = students_in(len(x))
        place = torch.arange(len(x), device=x.device)
        owner = torch.where(place < n, place, (place - n) % n)
        own = conds.take(cond, slice(n))
        w = uniform(self.w_range, x[:n], generator)
        u = gaussian(x[:n], generator)
        start = torch.full((n,), self.grid[0], dtype=coefficient_dtype(x), device=x.device)
        with self.networks.answering():
            v = self.networks.student(u, start, own, w)
            made = rotate(u, v, self.grid[0] - self.grid[1])
            target = self.target(v, made, own, w, generator)
        phi = uniform(traits_of(self.teacher).phi_range, x[n:], generator)
        eps = gaussian(x[n:], generator)
        seen = made[owner[n:]]
        return Regression(
            torch.cat([u, add_noise(seen, eps, phi)]),
            torch.cat([start, phi]),
            conds.take(cond, owner),
            w[owner],
            torch.cat([target, v_from_x_eps(seen, eps, phi)]),
        )

    def target(
        self, v: Tensor, made: Tensor, cond: Cond, w: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the student's target (B, *D) where it answers v (B, *D) and so makes x `made`.

        In x it is `x + c (x_real - x_fake)`, where c = 1 / mean |x - x_real| of each example: every
        noise level then moves the sample by as much (Yin et al. 2024, DMD, equation 8). It is x
        where both scores agree. Source: DMD2, arXiv 2405.14867.
        """
        assert self.networks is not None
        assert self.grid is not None
        low, high = traits_of(self.teacher).phi_range
        margin = MARGIN * (high - low)
        phi = uniform((low + margin, high - margin), made, generator)
        z = add_noise(made, gaussian(made, generator), phi)
        real = self.teacher(z, phi, cond, w)
        fake: Tensor = self.networks.fake(z, phi, cond, w)
        error = (made - x_from_v(z, real, phi)).abs().flatten(1).mean(dim=1).clamp_min(LEAST)
        # x_real - x_fake, without the state that both share.
        moved = expand(torch.sin(phi) / error, z) * (fake - real)
        return v - moved / math.sin(self.grid[0] - self.grid[1])


def _problem(
    stage: Stage, teacher: Denoiser, w_range: tuple[float, float], _: Cond | None
) -> DistributionMatching:
    if stage.steps != 1:
        raise RecipeError(
            f"distribution matching needs steps: 1, got {stage.steps}. Students of more steps are "
            "not matched yet; set steps: 1."
        )
    return DistributionMatching(teacher, w_range=w_range)


distribution_matching = Kind(
    "distribution-matching",
    _problem,
    lambda stage: f"matched-{stage.steps}",
    frozenset({"steps", "real"}),
    lambda _: "deterministic",
    # Of the real score, and of student and fake score, for each example of the student.
    calls=lambda _, batch: students_in(batch),
    own_calls=lambda _, batch: 2 * students_in(batch),
    check_part=lambda _, part: students_in(part),
    teacher=lambda stage: stage.real or TEACHER,
    needs_images=lambda _: False,
)
