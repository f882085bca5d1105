"""The plan of a distillation as data: what is made, from what, and what it will cost.

`chain` is the paper's (match -> 16 -> 8 -> ... -> 1); `direct` goes straight to one number of
steps with several sub-steps a stride; both can start at the two-pass teacher or at stage one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser
from fewstep.distill.halve import Halve
from fewstep.distill.match import Match
from fewstep.distill.problem import Problem
from fewstep.distill.trajectory import States
from fewstep.errors import RecipeError

TEACHER = "teacher"
STAGE_ONE = "stage-one"
Direction = Literal["decode", "encode"]


@dataclass(frozen=True)
class Cost:
    """Network evaluations, in examples: what is only evaluated, and what is trained on.

    A backward pass is counted as two evaluations.
    """

    teacher: int
    student: int

    @property
    def evaluations(self) -> int:
        """Everything in units of one forward pass of one example."""
        return self.teacher + 3 * self.student

    def __add__(self, other: Cost) -> Cost:
        """Return the sum."""
        return Cost(self.teacher + other.teacher, self.student + other.student)


@dataclass(frozen=True)
class Stage:
    """One student: how it is made. `steps` is None for stage one, which can take any number.

    Attributes:
        name: of the student, and of its folder.
        parent: name of its teacher, `TEACHER` for the guided pair.
        updates: optimiser updates.
        steps, substeps, order, stride, direction, states: as in `Halve`, and states in `Match`.
        pair: the student replaces the network and not the guided pair: it learns the conditional
            and the unconditional pass of its parent alike, and is itself guided by two passes.
    """

    name: str
    parent: str
    updates: int
    steps: int | None = None
    substeps: int = 2
    stride: int = 1
    direction: Direction = "decode"
    pair: bool = False
    states: States = "noised"
    order: Literal[1, 2] = 1

    @property
    def sampler(self) -> str | None:
        """Name of the sampler that the student is made for; None where it is free."""
        if self.steps is None:
            return None
        if self.direction == "encode":
            return "encode"
        return "stochastic" if self.stride == 2 else "deterministic"

    def problem(
        self, teacher: Denoiser, w: tuple[float, float], null_cond: Cond | None = None
    ) -> Problem:
        """Return the stage's regression problem under the teacher's answers.

        null_cond: of a pair, whose teacher is one network.
        """
        if self.steps is None:
            return Match(teacher, w=w, states=self.states)
        return Halve(
            teacher,
            self.steps,
            substeps=self.substeps,
            order=self.order,
            stride=self.stride,
            direction=self.direction,
            w=(0.0, 0.0) if self.pair else w,
            null_cond=null_cond if self.pair else None,
            states=self.states,
        )

    def identity(self) -> dict[str, Any]:
        """Return what the student depends on.

        What was the only choice once is not named: a run that was begun then goes on.
        """
        told = asdict(self)
        for key, once in (("states", "noised"), ("order", 1)):
            if told[key] == once:
                del told[key]
        return told

    def cost(self, batch_size: int) -> Cost:
        """Return what the stage will cost, before it starts: the same whatever its states."""
        passes = 2 if self.parent == TEACHER and not self.pair else 1
        examples = self.updates * batch_size
        return Cost(examples * passes * (1 if self.steps is None else self.substeps), examples)


def student_name(
    steps: int, stride: int = 1, direction: Direction = "decode", pair: bool = False
) -> str:
    """Return the name of a student: student-4, student-4-stochastic, encoder-4, pair-4."""
    if direction == "encode":
        return f"encoder-{steps}"
    if pair:
        return f"pair-{steps}" + ("-stochastic" if stride == 2 else "")
    return f"student-{steps}" + ("-stochastic" if stride == 2 else "")


@dataclass(frozen=True)
class Plan:
    """The stages in the order in which they are made; every parent comes before its child.

    The teacher comes from elsewhere, and so may the model of stage one.

    Raises RecipeError for a name twice, or a parent that is not made before.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        """Check that the stages can be made in this order."""
        made = {TEACHER}
        if all(stage.name != STAGE_ONE for stage in self.stages):
            made.add(STAGE_ONE)  # brought from elsewhere
        for stage in self.stages:
            if stage.name in made:
                raise RecipeError(f"two stages are named {stage.name!r}. Name one differently.")
            if stage.parent not in made:
                raise RecipeError(
                    f"stage {stage.name!r} starts from {stage.parent!r}, which is not made before "
                    f"it; there are {', '.join(sorted(made))}. Reorder the stages."
                )
            made.add(stage.name)

    def __iter__(self) -> Iterator[Stage]:
        """Iterate over the stages in order."""
        return iter(self.stages)

    def remaining(self, done: Sequence[str]) -> tuple[Stage, ...]:
        """Return the stages that are not in `done`, in order: what comes next is the first."""
        return tuple(s for s in self.stages if s.name not in done)

    def cost(self, batch_size: int) -> Cost:
        """Return the whole plan's cost."""
        return sum((s.cost(batch_size) for s in self.stages), Cost(0, 0))


def chain(
    first: int,
    last: int = 1,
    *,
    match: int | None,
    updates: int,
    substeps: int = 2,
    order: Literal[1, 2] = 1,
) -> Plan:
    """Return the paper's chain: stage one, then `first`, first/2, ..., `last` steps.

    match: updates of stage one; None leaves it out, and `first` is made from the guided pair.
    updates: of each halving. substeps, order: of the first halving; the later ones have two of
    DDIM. Raises RecipeError unless first is last times a power of two.
    """
    ratio, rest = divmod(first, last)
    if rest or ratio < 1 or ratio & (ratio - 1):
        raise RecipeError(f"a chain from {first} to {last} steps does not halve. Use 16 to 1, say.")
    stages = [] if match is None else [Stage(STAGE_ONE, TEACHER, match)]
    parent, steps = (TEACHER if match is None else STAGE_ONE), first
    while steps >= last:
        stage = Stage(student_name(steps), parent, updates, steps, substeps, order=order)
        stages.append(stage)
        parent, steps, substeps, order = stage.name, steps // 2, 2, 1
    return Plan(tuple(stages))


def direct(
    steps: int,
    *,
    updates: int,
    match: int | None = None,
    substeps: int = 4,
    order: Literal[1, 2] = 2,
) -> Plan:
    """Return a plan straight to `steps`, `substeps` teacher steps a stride, no halving between.

    By default from the guided pair by steps of second order: of the plans to four steps that were
    compared (docs/lab/cost-to-quality.md) the nearest to the teacher for what it costs.
    """
    return chain(steps, steps, match=match, updates=updates, substeps=substeps, order=order)
