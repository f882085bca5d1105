"""Consistency distillation: from any angle of a trajectory, one rotation to its clean end.

The target at a state (z, phi) is the velocity along which one rotation by phi ends where the
teacher's trajectory through z ends, x: `v = (cos phi z - x) / sin phi`. A trajectory of K steps of
the teacher gives K states with their targets, and needs no images (consistency mid-training, Hu et
al. 2025). Alternatively the teacher makes one step from the state, and x is where the student's own
averaged weights jump to from there (consistency distillation, Song et al. 2023; Lu & Song 2024).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.angle import add_noise, expand, rotate, v_from_x, x_from_v
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser, coefficient_dtype, traits_of
from fewstep.core.grid import MAX_STEPS
from fewstep.distill.draw import check_free, check_range_of_teacher, gaussian, uniform
from fewstep.distill.guidance import STAGE_ONE
from fewstep.distill.pretrain import TEACHER
from fewstep.distill.problem import Average, Kind, Regression, borrow
from fewstep.distill.steps import extrapolated
from fewstep.distill.trajectory import States, check_states
from fewstep.errors import RangeError

if TYPE_CHECKING:
    from fewstep.distill.plan import Stage

Target: TypeAlias = Literal["end", "self"]
CLEANEST = 1 / 1024  # of the noisiest angle: the last state of a trajectory is no cleaner


class Walk(NamedTuple):
    """K states of each of T trajectories, the noisiest first, as K T rows.

    z: (K T, *D). phi, h: (K T,) angles, and the steps of the teacher from there. end: (T, *D), the
    trajectories' clean ends.
    """

    z: Tensor
    phi: Tensor
    cond: Cond
    w: Tensor
    h: Tensor
    end: Tensor


@dataclass(frozen=True)
class ConsistencyDistillation:
    """Regression on the jump from each state of the teacher's trajectories to its end.

    Attributes:
        teacher: `Guided`, or the model of stage one.
        w_range: of the guidance weight.
        substeps: K, steps of the teacher from noise to clean, each from a state that is trained
            on. A batch holds B / K trajectories.
        order: of these steps: 1 is DDIM, 2 extrapolates velocities, as in `StepDistillation`.

    The first state is pure noise. The angles of the others are equally spaced, with a random
    offset per trajectory.
    """

    teacher: Denoiser
    w_range: tuple[float, float] = (0.0, 4.0)
    substeps: int = 16
    order: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        """Raise RangeError where the attributes do not make a stage."""
        traits = traits_of(self.teacher)
        role = "the teacher of consistency distillation"
        check_free(traits, role, "Start from the guided teacher or stage one.")
        check_range_of_teacher(self.w_range, traits)
        if not 4 <= self.substeps <= MAX_STEPS:
            raise RangeError(
                f"substeps of consistency distillation must lie in [4, {MAX_STEPS}], got "
                f"{str(self.substeps)[:20]}. Use 16, for example."
            )
        if self.order not in (1, 2):
            raise RangeError(f"order = {self.order}; it is 1 or 2.")

    @property
    def _range(self) -> tuple[float, float]:
        """Lowest and highest angle of a state."""
        low, high = traits_of(self.teacher).phi_range
        return max(low, CLEANEST * high), high

    def __call__(self, x: Tensor, cond: Cond, generator: torch.Generator) -> Regression:
        """Return the regression for x (B, *D), of which the shape alone is used.

        Costs teacher.passes evaluations per example. Raises RangeError where K does not divide B.
        """
        z, phi, cond, w, _, end = self.walk(x, cond, generator)
        whole = torch.cat([end] * self.substeps)
        return Regression(z, phi, cond, w, v_from_x(z, whole, phi))

    def walk(self, x: Tensor, cond: Cond, generator: torch.Generator) -> Walk:
        """Return B / K whole trajectories, for x (B, *D) and the conditions of B / K of them."""
        points = self.substeps
        check_whole(len(x), points)
        count = len(x) // points
        x, cond = x[:count], conds.take(cond, slice(count))
        w, z = uniform(self.w_range, x, generator), gaussian(x, generator)
        phi = self._angles(x, generator)
        h = phi[:-1] - phi[1:]
        states, before = list[Tensor](), (z, z)
        with torch.no_grad():
            for k in range(points):
                states.append(z)
                v = u = self.teacher(z, phi[k], cond, w)
                if self.order == 2 and k > 0:
                    sin, cos = torch.sin(h[k - 1]), torch.cos(h[k - 1])
                    r = h[k] / (2 * h[k - 1]) + (h[0] / (2 * h[1]) if k == 1 else 0.0)
                    u = extrapolated(v, before, expand(cos, z), expand(sin, z), expand(r, z))
                before, z = (z, v), rotate(z, u, h[k])
        owner = torch.arange(count, device=x.device).repeat(points)
        angles = phi[:-1].flatten()
        return Walk(torch.cat(states), angles, conds.take(cond, owner), w[owner], h.flatten(), z)

    def _angles(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return (K + 1, T) angles of trajectories x (T, *D): the noisiest, K - 1 more, and 0."""
        low, high = self._range
        points, kept = self.substeps, coefficient_dtype(x)
        # Half a step to one and a half from the noisiest: extrapolation needs steps of like size.
        first = uniform((0.5, 1.5), x, generator)
        number = torch.arange(points - 1, device=x.device, dtype=kept)[:, None]
        inner = high - (high - low) / (points - 0.5) * (number + first)
        return torch.cat([torch.full_like(inner[:1], high), inner, torch.zeros_like(inner[:1])])


@dataclass(frozen=True)
class SelfConsistency(ConsistencyDistillation):
    """Regression on the jump that the student's average makes after one step of the teacher.

    The target is `v = F + g (f - f')` with the average's answer F at the state, and the ends f and
    f' of its jumps from there and from the state one step h of the teacher further on. With
    `g = 1 / sin phi` it is v_from_x(z, f'), consistency distillation; with `g = cos phi / h` it is
    the continuous-time form with its derivative taken by differences (Lu & Song 2024).
    The larger one is used: at phi = pi/2 the second is 0.

    Attributes:
        states: "noised" puts noise on the data, and the teacher makes one step of DDIM from there;
            "trajectory" takes the states of whole trajectories.
    """

    states: States = "noised"
    _lent: list[Average] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise RangeError where the attributes do not make a stage."""
        super().__post_init__()
        if check_states(self.states) == "noised" and self.order == 2:
            raise RangeError(
                "order must be 1 where states are noised, and the teacher makes one step, got 2. "
                "Use order 1, or states: trajectory."
            )

    def lend(self, average: Average) -> None:
        """Keep the student's average (`fewstep.distill.problem.AsksAverage`)."""
        self._lent[:] = [average]

    def __call__(self, x: Tensor, cond: Cond, generator: torch.Generator) -> Regression:
        """Return the regression for clean x (B, *D), once `lend` was called.

        Costs teacher.passes evaluations of the teacher per example, and one of the student, or two
        where states are noised. Raises RangeError where K does not divide B, with trajectories.
        """
        if self.states == "trajectory":
            z, phi, cond, w, h, end = self.walk(x, cond, generator)
            v = self._ask(z, phi, cond, w)
            here = x_from_v(z, v, phi)
            # A state's jump is also the target of the state before it; the last target is clean.
            there = torch.cat([here[len(end) :], end])
        else:
            phi, w = uniform(self._range, x, generator), uniform(self.w_range, x, generator)
            z = add_noise(x, gaussian(x, generator), phi)
            h = phi.clamp(max=self._range[1] / self.substeps)
            with torch.no_grad():
                after = rotate(z, self.teacher(z, phi, cond, w), h)
            both, turn = torch.cat([z, after]), torch.cat([phi, phi - h])
            answers = self._ask(both, turn, conds.concat(cond, cond), w.repeat(2))
            v = answers[: len(z)]
            here, there = x_from_v(both, answers, turn).chunk(2)
        gain = torch.maximum(1 / torch.sin(phi), torch.cos(phi) / h)
        return Regression(z, phi, cond, w, v + expand(gain, z) * (here - there))

    def _ask(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        lent = self._lent[0] if self._lent else None
        with borrow(lent, "targets of self-consistency") as student:
            return student(z, phi, cond, w).to(z.dtype)


def check_whole(batch: int, points: int) -> None:
    """Raise RangeError unless a batch holds whole trajectories of `points` states."""
    if batch % points or not batch:
        raise RangeError(
            f"a batch (a part of one, with several) must be a multiple of substeps, the {points} "
            f"states of a trajectory, got {batch}. Change one of them."
        )


def _problem(
    stage: Stage, teacher: Denoiser, w_range: tuple[float, float], _: Cond | None
) -> ConsistencyDistillation:
    same = (teacher, w_range, stage.substeps, stage.order)
    if stage.target == "end":
        return ConsistencyDistillation(*same)
    return SelfConsistency(*same, states=stage.states or "noised")


def _teacher(stage: Stage) -> str:
    """Return the parent; the guided teacher where the parent is a student to go on with."""
    return stage.parent if stage.parent in (TEACHER, STAGE_ONE) else TEACHER


def takes_trajectories(stage: Stage, states: States | None = None) -> bool:
    """Whether the states of a consistency stage are those of whole trajectories.

    states: of a stage that has none of its own.
    """
    mine = stage.kind == consistency_distillation.name
    return mine and (stage.target == "end" or (stage.states or states) == "trajectory")


def _check_part(stage: Stage, part: int) -> None:
    if takes_trajectories(stage):
        check_whole(part, stage.substeps)


def _own_calls(stage: Stage, batch: int) -> int:
    if stage.target == "end":
        return 0
    return batch if takes_trajectories(stage) else 2 * batch


consistency_distillation = Kind(
    "consistency-distillation",
    _problem,
    lambda stage: "consistency" if stage.target == "end" else "self-consistency",
    frozenset({"substeps", "order", "target", "pool"}),
    lambda _: "consistency",
    own_calls=_own_calls,
    check_part=_check_part,
    teacher=_teacher,
    needs_images=lambda stage: not takes_trajectories(stage),
)
