"""Shortcut targets of any-step distillation, and the kind of stage that both make.

In a part of a batch the target of a step of N is two steps of the student's own average at 2N in
place of the teacher's sub-steps (shortcut models, Frans et al. 2024, arXiv 2410.12557). They cost
two evaluations for every N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.cond import Cond
from fewstep.core.denoiser import AtSteps, Denoiser, Traits, traits_of
from fewstep.distill.any_steps import (
    AnyStepDistillation,
    check_counts,
    check_each,
    check_mixture,
    divided,
    examples,
    joined,
    regressions,
    trajectories,
)
from fewstep.distill.problem import Average, Kind, Regression, borrow
from fewstep.distill.steps import StepDistillation
from fewstep.distill.trajectory import States
from fewstep.errors import RangeError, RecipeError

if TYPE_CHECKING:
    from fewstep.distill.plan import Stage

OWN_STEPS = 2  # steps of the student's average that one step of a shortcut target replaces


@dataclass(frozen=True)
class Shortcuts(AnyStepDistillation):
    """Any-step distillation, in part from the student's own average.

    Attributes:
        shortcut: the part of a batch whose targets are two steps of the average at 2N, for every N
            but the largest. The number of examples is proportional to 1 / N, because a trajectory
            of N steps gives only N examples. Their states are as `states` says, with trajectories
            of the average.
    """

    shortcut: float = 0.25
    _average: _Average = field(init=False, repr=False, compare=False)
    _own: list[StepDistillation] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Raise RangeError for numbers of steps that are not each followed by its half."""
        super().__post_init__()
        if not 0.0 < self.shortcut < 1.0:
            raise RangeError(
                f"shortcut must lie in [0, 1), got {self.shortcut}. Use 0.25, for example."
            )
        object.__setattr__(self, "_average", _Average(traits_of(self.teacher)))
        for n in self.counts[1:]:
            if OWN_STEPS * n not in self.counts:
                raise RangeError(
                    f"shortcut targets for {n} steps are made by {OWN_STEPS * n} steps of the "
                    f"student, and any_steps must have both, got {list(self.counts)}. Add "
                    f"{OWN_STEPS * n}, or leave shortcut out."
                )
            teacher = AtSteps(self._average, OWN_STEPS * n)
            same: Any = {"w_range": self.w_range, "states": self.states}
            self._own.append(StepDistillation(teacher, n, OWN_STEPS, **same))

    def lend(self, average: Average) -> None:
        """Take the student's average, which shortcut targets are made by."""
        self._average.lent = average

    def __call__(self, x: Tensor, cond: Cond, generator: torch.Generator) -> Regression:
        """Return the regression for clean x (B, *D); see `AnyStepDistillation`."""
        own = shortcuts(len(x), self.counts, self.shortcut)
        first = len(x) - sum(own)
        check_each(len(x), self.counts, _examples(first, own, self.mixture, self.states))
        whole = self._regression(x[:first], conds.take(cond, slice(first)), generator)
        if not sum(own):
            return whole
        rest = conds.take(cond, slice(first, None))
        return joined([whole, regressions(self._own, own, x[first:], rest, generator)])


class _Average:
    """The average of the student in training as a denoiser, once it has been lent."""

    passes = 1
    lent: Average | None = None

    def __init__(self, traits: Traits) -> None:
        self.traits = traits

    def __call__(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor, steps: Tensor) -> Tensor:
        with borrow(self.lent, "shortcut targets") as lent:
            student: Any = lent
            v: Tensor = student(z, phi, cond, w, steps)
        return v


def shortcuts(batch: int, counts: Sequence[int], part: float) -> list[int]:
    """Return how many examples of a batch have shortcut targets, for each N but the largest."""
    return divided(min(round(part * batch), batch - 1), [counts[0] // n for n in counts[1:]])


def _examples(first: int, own: Sequence[int], mixture: Sequence[int], states: States) -> list[int]:
    """Return how many examples each N has, of which `first` have the teacher's targets."""
    taught = examples(first, mixture, states)
    return [a + b for a, b in zip(taught, (0, *own), strict=True)]


def _problem(
    stage: Stage, teacher: Denoiser, w_range: tuple[float, float], _: Cond | None
) -> AnyStepDistillation:
    if not stage.any_steps:
        raise RecipeError(
            "any-step distillation needs any_steps, got none. Add it, such as any_steps: [8, 4, 2, "
            "1]."
        )
    same: Any = stage.model_dump(include={"substeps", "order", "mixture"})
    same |= {"w_range": w_range, "states": stage.states or "noised"}
    if stage.shortcut:
        return Shortcuts(teacher, stage.any_steps, **same, shortcut=stage.shortcut)
    return AnyStepDistillation(teacher, stage.any_steps, **same)


def _calls(stage: Stage, batch: int) -> int:
    counts = check_counts(stage.any_steps)
    mixture, whole = check_mixture(stage.mixture, counts), stage.substeps * counts[0]
    batch -= _own_calls(stage, batch) // OWN_STEPS
    if stage.states == "trajectory":
        return whole * trajectories(batch, mixture)
    sizes = divided(batch, mixture)
    return sum(n * whole // k for n, k in zip(sizes, counts, strict=True))


def _own_calls(stage: Stage, batch: int) -> int:
    return OWN_STEPS * sum(shortcuts(batch, check_counts(stage.any_steps), stage.shortcut))


def _check_part(stage: Stage, part: int) -> None:
    """Raise RangeError where a number of steps has no examples, or too few for a trajectory."""
    counts = check_counts(stage.any_steps)
    mixture, own = check_mixture(stage.mixture, counts), shortcuts(part, counts, stage.shortcut)
    sizes = _examples(part - sum(own), own, mixture, stage.states or "noised")
    check_each(part, counts, sizes)
    few = [(n, k) for n, k in zip(own, counts[1:], strict=True) if 0 < n < k]
    if stage.states == "trajectory" and few:
        examples, steps = few[0]
        raise RangeError(
            f"shortcut targets for {steps} steps need a trajectory of as many states, and a batch "
            f"(a part of one, with several) of {part} gives them {examples} examples. Use a larger "
            "batch_size or shortcut, or states: noised."
        )


any_step_distillation = Kind(
    "any-step-distillation",
    _problem,
    lambda _: "student-any",
    frozenset({"any_steps", "substeps", "order", "mixture", "shortcut"}),
    lambda _: "deterministic",
    calls=_calls,
    own_calls=_own_calls,
    check_part=_check_part,
)
