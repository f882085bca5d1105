"""A stage is a regression problem: which states, which target. One loss fits them all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.angle import expand
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser
from fewstep.errors import RangeError

if TYPE_CHECKING:
    from fewstep.distill.plan import Stage

MOST_POOLED = 1000  # updates that share a pool


class Regression(NamedTuple):
    """What a student is asked (z, phi, cond, w) and what it should answer (v_target).

    z, v_target: (B, *D). phi, w: (B,), float32 or float64. cond: a condition batch of B.
    steps: (B,) int64, where the number of steps is an input of the student; None elsewhere.
    """

    z: Tensor
    phi: Tensor
    cond: Cond
    w: Tensor
    v_target: Tensor
    steps: Tensor | None = None

    @property
    def asked(self) -> tuple[Any, ...]:
        """The arguments that the student is called with."""
        few = (self.z, self.phi, self.cond, self.w)
        return few if self.steps is None else (*few, self.steps)

    def take(self, index: Tensor | slice) -> Regression:
        """Return the examples of an index (n,), or of a slice."""
        steps = None if self.steps is None else self.steps[index]
        cond = conds.take(self.cond, index)
        return Regression(
            self.z[index], self.phi[index], cond, self.w[index], self.v_target[index], steps
        )


class Problem(Protocol):
    """A stage of training: given clean data, says which states to visit and the target there."""

    def __call__(self, x: Tensor, cond: Cond, generator: torch.Generator) -> Regression:
        """Return the regression for clean x (B, *D); every draw comes from `generator`.

        `generator` lives on the device of x. No gradient flows into the result.
        """
        ...


Average: TypeAlias = Callable[[], AbstractContextManager[Denoiser]]


@runtime_checkable
class AsksAverage(Problem, Protocol):
    """A problem whose targets come from the student's own averaged weights (EMA)."""

    def lend(self, average: Average) -> None:
        """Keep `average`, which the training loop gives before the first update.

        `with average() as student:` yields the student with its averaged weights of the updates so
        far, without dropout and without gradients. Use it inside `__call__` alone.
        """
        ...


def borrow(average: Average | None, what: str) -> AbstractContextManager[Denoiser]:
    """Return `average()`, the student with its averaged weights, for a `with` block.

    what: the targets that need it, in the plural, for the error. Raises RangeError where the
    training loop has not lent an average.
    """
    if average is None:
        raise RangeError(
            f"{what} need the average of the student, and none was lent. Train with "
            "fewstep.train.train, or call lend first."
        )
    return average()


@dataclass(frozen=True)
class Kind:
    """A kind of stage, by its name in the literature.

    Attributes:
        problem: (stage, teacher, range of w, null condition) -> the regression problem; raises a
            FewstepError for a stage that makes no sense, or asks too much of its teacher.
        default_name: of the student. sampler: that it is made for; None for any.
        settings: of a stage of this kind, beside those of every kind.
        calls, own_calls: (stage, examples of a batch) -> examples that the teacher, and the
            student or its average, are asked about for the targets of a batch.
        check_part: (stage, examples of a part of a batch) -> raises RangeError where it cannot be
            divided as the stage needs it.
        needs_images: whether a stage puts noise on images of the data; else prompts or classes
            are enough.
        teacher: name of the model that answers; by default the parent, which the student starts
            from.
    """

    name: str
    problem: Callable[[Stage, Denoiser, tuple[float, float], Cond | None], Problem]
    default_name: Callable[[Stage], str]
    settings: frozenset[str] = frozenset()
    sampler: Callable[[Stage], str | None] = lambda _: None
    calls: Callable[[Stage, int], int] = lambda _, batch: batch
    own_calls: Callable[[Stage, int], int] = lambda *_: 0
    teacher: Callable[[Stage], str] = lambda stage: stage.parent
    check_part: Callable[[Stage, int], object] = lambda *_: None
    needs_images: Callable[[Stage], bool] = lambda stage: stage.states != "trajectory"


Weighting: TypeAlias = Callable[[Tensor], Tensor]


def truncated_snr(phi: Tensor) -> Tensor:
    """Return max(cos^2, sin^2) (B,), in [1/2, 1]: max(SNR, 1) on the error of x, seen in v.

    Source: math.md 4 (Salimans & Ho 2022). In v it needs no division.
    """
    return torch.maximum(torch.cos(phi).square(), torch.sin(phi).square())


def snr_plus_one(phi: Tensor) -> Tensor:
    """Return 1 (B,): SNR + 1 on the error of x is the plain error of v. Source: math.md 4."""
    return torch.ones_like(phi)


WEIGHTINGS: dict[str, Weighting] = {
    "truncated-snr": truncated_snr,
    "snr-plus-one": snr_plus_one,
}


def loss(v: Tensor, v_target: Tensor, phi: Tensor, weighting: Weighting = truncated_snr) -> Tensor:
    """Return the scalar mean over examples of weight(phi) * mean((v - v_target)^2), in float32.

    v, v_target: (B, *D); phi: (B,). float64 stays float64.
    """
    exact = torch.promote_types(v.dtype, torch.float32)
    error = (v.to(exact) - v_target.to(exact)).square()
    return (expand(weighting(phi), error) * error).mean()
