"""Any-step distillation: one student for several numbers of steps, which are an input of it.

For each number N the targets are those of step distillation (math.md 5): the teacher's sub-steps
that lie in one step of N. On "trajectory" states one walk of the teacher from pure noise to data
serves every N at once: between any two of its states that a step of N connects, that step is a
target. So all numbers of steps together cost the teacher one trajectory.

On "noised" states each N has examples of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.angle import expand, rotate
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser, coefficient_dtype, traits_of
from fewstep.core.grid import Grid
from fewstep.distill.draw import check_free, gaussian, uniform
from fewstep.distill.problem import Kind, Regression
from fewstep.distill.steps import SAME_ANGLE, StepDistillation, extrapolated, extrapolation
from fewstep.distill.trajectory import States
from fewstep.errors import GridError, RangeError, RecipeError

if TYPE_CHECKING:
    from fewstep.distill.plan import Stage


class _Steps(NamedTuple):
    """One row for every step of every N, in rising order of N."""

    start: Tensor  # (R,) number of its first state on the trajectory
    end: Tensor  # (R,)
    steps: Tensor  # (R,) N
    phi: Tensor  # (R,) angle of the first state
    cos: Tensor  # (R,) of the angle between the two
    sin: Tensor  # (R,)


@dataclass(frozen=True)
class AnyStepDistillation:
    """Regression on the teacher's sub-steps for every number of steps N, at the same w and c.

    The student is called with the number of steps of each example as a fifth argument.

    Attributes:
        teacher: the model of stage one or a `Guided` pair.
        counts: the numbers of steps; each divides the largest one, and their grids are nested.
        substeps: teacher steps in one step of the largest N; a whole trajectory has the largest N
            times as many, at every N.
        order: of the solver that makes the sub-steps, as in `StepDistillation`.
        mixture: how many steps of each N, in falling order of N, are taken from one trajectory; on
            noised states, the ratio of the examples of each N. By default all of them. More than N
            takes steps again, which is meant for batches that share a pool (`TrainConfig.pool`).
        w_range: of the guidance weight; by default the teacher's own.
        states: "noised" puts noise on the data; "trajectory" walks from pure noise, and the images
            of a batch give their shape alone.
    """

    teacher: Denoiser
    counts: tuple[int, ...] = (8, 4, 2, 1)
    substeps: int = 2
    order: Literal[1, 2] = 1
    mixture: tuple[int, ...] = ()
    w_range: tuple[float, float] | None = None
    states: States = "noised"
    _parts: list[StepDistillation] = field(
        default_factory=list, init=False, repr=False, compare=False
    )
    _tables: dict[tuple[torch.device, torch.dtype], _Steps] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Raise GridError or RangeError where the attributes do not make a stage."""
        counts = check_counts(self.counts)
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "mixture", check_mixture(self.mixture, counts))
        role = "the teacher of any-step distillation"
        check_free(traits_of(self.teacher), role, "Start from the guided teacher or stage one.")
        for n in counts:
            few: Any = {"substeps": self.substeps * (counts[0] // n), "order": self.order}
            part = StepDistillation(
                self.teacher, n, **few, w_range=self.w_range, states=self.states
            )
            self._parts.append(part)
        object.__setattr__(self, "w_range", self._parts[0].w_range)
        self._table(torch.device("cpu"), torch.float64)

    def __call__(self, x: Tensor, cond: Cond, generator: torch.Generator) -> Regression:
        """Return the regression for clean x (B, *D).

        Raises RangeError for a batch that has no example of one of the numbers of steps.
        """
        check_each(len(x), self.counts, examples(len(x), self.mixture, self.states))
        return self._regression(x, cond, generator)

    def _regression(self, x: Tensor, cond: Cond, generator: torch.Generator) -> Regression:
        if self.states == "trajectory":
            return self._walked(x, cond, generator)
        made, first = list[Regression](), 0
        for part, few in zip(self._parts, divided(len(x), self.mixture), strict=True):
            if few:
                rows = slice(first, first + few)
                r = part(x[rows], conds.take(cond, rows), generator)
                made.append(r._replace(steps=torch.full_like(r.phi, part.steps, dtype=torch.long)))
                first += few
        z, phi, w, v, steps = (
            torch.cat([getattr(r, name) for r in made])
            for name in ("z", "phi", "w", "v_target", "steps")
        )
        return Regression(z, phi, cond, w, v, steps)

    def _walked(self, x: Tensor, cond: Cond, generator: torch.Generator) -> Regression:
        """Return B steps of as few trajectories as hold them, `mixture` of each N per trajectory.

        Where the trajectories hold more than B, some steps of the largest N are left out.
        """
        assert self.w_range is not None
        batch, device = len(x), x.device
        walks = trajectories(batch, self.mixture)
        x, cond = x[:walks], conds.take(cond, slice(walks))
        w = uniform(self.w_range, x, generator)
        states = self._trajectory(gaussian(x, generator), cond, w)
        rows, before = [], 0
        for n, taken in zip(reversed(self.counts), reversed(self.mixture), strict=True):
            u = torch.rand((walks, n), generator=generator, device=device)
            order = u.argsort(1).T
            rows.append(before + torch.cat([order] * math.ceil(taken / n))[:taken])
            before += n
        row = torch.cat(rows).flatten()[:batch]
        owner = torch.arange(walks, device=device).repeat(sum(self.mixture))[:batch]
        step = _Steps(*(t[row] for t in self._table(device, coefficient_dtype(x))))
        z, to = states[step.start, owner], states[step.end, owner]
        v = (expand(step.cos, z) * z - to) / expand(step.sin, z)
        return Regression(z, step.phi, conds.take(cond, owner), w[owner], v, step.steps)

    def _trajectory(self, z: Tensor, cond: Cond, w: Tensor) -> Tensor:
        """Return the teacher's states (N + 1, T, *D) at the angles of the largest N, from noise z.

        Of order 2 its sub-steps go on from the velocities before over the whole trajectory.
        """
        points = self._points()
        h = [a - b for a, b in pairwise(points)]
        r, out, before = extrapolation(h), [z], (z, z)
        with torch.no_grad():
            for k, phi in enumerate(points[:-1]):
                angle = torch.full((len(z),), phi, dtype=w.dtype, device=z.device)
                u = v = self.teacher(z, angle, cond, w)
                if self.order == 2 and k:
                    u = extrapolated(v, before, math.cos(h[k - 1]), math.sin(h[k - 1]), r[k])
                before, z = (z, v), rotate(z, u, h[k])
                if (k + 1) % self.substeps == 0:
                    out.append(z)
        return torch.stack(out)

    def _points(self) -> Grid:
        """Return the angles of all sub-steps of a trajectory."""
        finest = self._parts[0]
        assert finest.grid is not None
        assert finest.split is not None
        parts = [finest.split(a, b, self.substeps) for a, b in pairwise(finest.grid)]
        return (*(phi for part in parts for phi in part[:-1]), finest.grid[-1])

    def _table(self, device: torch.device, dtype: torch.dtype) -> _Steps:
        if (device, dtype) not in self._tables:
            rows = [row for part in reversed(self._parts) for row in self._rows(part)]
            exact = torch.tensor(rows, dtype=torch.float64)
            whole, angles = exact[:, :3].long().to(device), exact[:, 3:].to(device, dtype)
            self._tables[device, dtype] = _Steps(*whole.unbind(1), *angles.unbind(1))
        return self._tables[device, dtype]

    def _rows(self, part: StepDistillation) -> Iterator[tuple[int, int, int, float, float, float]]:
        """Yield the row of `_Steps` of each step of an N. Raises GridError off the finest grid."""
        finest, stride = self._parts[0].grid, self.counts[0] // part.steps
        assert finest is not None
        assert part.grid is not None
        nested = finest[::stride]
        off = max(abs(a - b) for a, b in zip(part.grid, nested, strict=True))
        if off > SAME_ANGLE:
            raise GridError(
                f"the angles of {part.steps} steps must be among those of {self.counts[0]}, got "
                f"some that are {off:.3g} away from one. Choose other numbers of steps."
            )
        for i, (phi, to) in enumerate(pairwise(nested)):
            ends, h = (stride * i, stride * (i + 1)), phi - to
            yield *ends, part.steps, phi, math.cos(h), math.sin(h)


def check_counts(counts: Sequence[int]) -> tuple[int, ...]:
    """Return numbers of steps, largest first. Raises RangeError unless each divides the largest."""
    out = tuple(sorted(counts, reverse=True))
    if len(out) < 2 or len(set(out)) < len(out) or out[-1] < 1 or any(out[0] % n for n in out):
        raise RangeError(
            "any_steps must be two or more different numbers of steps that divide the largest one, "
            f"got {list(counts)}. Use [8, 4, 2, 1], for example."
        )
    return out


def check_mixture(mixture: Sequence[int], counts: Sequence[int]) -> tuple[int, ...]:
    """Return a mixture of numbers of steps, by default all steps of each. Raises RangeError."""
    out = tuple(mixture) or tuple(counts)
    if len(out) != len(counts) or min(out) < 1:
        raise RangeError(
            "mixture must have one whole number for each number of steps, at least 1, in the "
            f"order {list(counts)}, got {list(mixture)}. Use {list(counts)}, for example."
        )
    return out


def divided(batch: int, mixture: Sequence[int]) -> list[int]:
    """Return how many of `batch` noised examples each N has, in the ratio of a mixture."""
    total = sum(mixture)
    bounds = [round(batch * sum(mixture[:k]) / total) for k in range(len(mixture) + 1)]
    return [b - a for a, b in pairwise(bounds)]


def trajectories(batch: int, mixture: Sequence[int]) -> int:
    """Return how many trajectories a batch of steps is taken from."""
    return math.ceil(batch / sum(mixture))


def examples(batch: int, mixture: Sequence[int], states: States) -> list[int]:
    """Return how many examples of a batch each N has, in falling order of N."""
    if states == "noised":
        return divided(batch, mixture)
    walks, out = trajectories(batch, mixture), []
    left_out = walks * sum(mixture) - batch
    for steps in mixture:
        few = min(left_out, walks * steps)
        out.append(walks * steps - few)
        left_out -= few
    return out


def check_each(batch: int, counts: Sequence[int], sizes: Sequence[int]) -> None:
    """Raise RangeError unless each number of steps has examples in a batch, or in a whole pool.

    sizes: how many each of `counts` has.
    """
    none = [n for n, size in zip(counts, sizes, strict=True) if not size]
    if none:
        raise RangeError(
            f"a batch (a part of one, with several) must have examples of all of {list(counts)} "
            f"steps, and one of {batch} has none of {none[0]}. Use a larger batch, or fewer parts."
        )


def _problem(
    stage: Stage, teacher: Denoiser, w_range: tuple[float, float], _: Cond | None
) -> AnyStepDistillation:
    if not stage.any_steps:
        raise RecipeError(
            "any-step distillation needs any_steps, got none. Add it, such as any_steps: [8, 4, 2, "
            "1]."
        )
    same = stage.model_dump(include={"substeps", "order", "mixture"})
    states = stage.states or "noised"
    return AnyStepDistillation(teacher, stage.any_steps, **same, w_range=w_range, states=states)


def _calls(stage: Stage, batch: int) -> int:
    counts = check_counts(stage.any_steps)
    mixture, whole = check_mixture(stage.mixture, counts), stage.substeps * counts[0]
    if stage.states == "trajectory":
        return whole * trajectories(batch, mixture)
    sizes = divided(batch, mixture)
    return sum(n * whole // k for n, k in zip(sizes, counts, strict=True))


def _check_part(stage: Stage, part: int) -> None:
    """Raise RangeError where a number of steps has no examples.

    Raises it also for a pool without trajectories, and for a mixture above N times the pool.
    """
    counts = check_counts(stage.any_steps)
    mixture = check_mixture(stage.mixture, counts)
    if stage.pool > 1 and stage.states != "trajectory":
        raise RangeError(
            "pool needs states: trajectory, whose examples come from few trajectories, got states: "
            f"{stage.states} with pool {stage.pool}. Change one of them."
        )
    again = [(m, n) for m, n in zip(mixture, counts, strict=True) if m > n * stage.pool]
    if again and stage.states == "trajectory":
        taken, n = again[0]
        raise RangeError(
            f"mixture must be at most N times pool, {n * stage.pool} for {n} steps, got {taken}: "
            "the same example would be in one batch more than once. Take fewer, or a larger pool, "
            "such as pool: 16."
        )
    check_each(part, counts, examples(part, mixture, stage.states or "noised"))


any_step_distillation = Kind(
    "any-step-distillation",
    _problem,
    lambda _: "student-any",
    frozenset({"any_steps", "substeps", "order", "mixture", "pool"}),
    lambda _: "deterministic",
    calls=_calls,
    check_part=_check_part,
)
