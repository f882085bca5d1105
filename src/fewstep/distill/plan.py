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
from fewstep.core.grid import Clock, check_steps, cosine, equal_angles
from fewstep.distill.guidance import GuidanceDistillation
from fewstep.distill.problem import Problem
from fewstep.distill.steps import StepDistillation, check_evaluations, first_untrained, moves_on
from fewstep.distill.trajectory import States
from fewstep.errors import GridError, RangeError, RecipeError

TEACHER = "teacher"
STAGE_ONE = "stage-one"
MAX_UPDATES = 1_000_000_000
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
        steps, substeps, order, stride, direction: as in `StepDistillation`.
        states: as in both kinds of stage.
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

    def __post_init__(self) -> None:
        """Raise RecipeError for numbers out of range, and settings that do not go together."""
        for name, value in (("updates", self.updates), ("substeps", self.substeps)):
            if not 1 <= value <= MAX_UPDATES:
                raise RecipeError(
                    f"stage {self.name!r}: {name} must be a whole number from 1 to {MAX_UPDATES}, "
                    f"got {str(value)[:40]}. Change it."
                )
        if self.steps is None:
            self._check_stage_one()
        else:
            self._check_few_steps(self.steps)

    def _check_stage_one(self) -> None:
        default = {"substeps": 2, "stride": 1, "direction": "decode", "pair": False, "order": 1}
        ignored = [key for key, value in default.items() if getattr(self, key) != value]
        if ignored:
            given = ", ".join(f"{key} = {getattr(self, key)}" for key in ignored)
            raise RecipeError(
                f"stage {self.name!r}: {', '.join(ignored)} must be left out of a stage without "
                f"steps (stage one), which has no sub-steps, got {given}. Leave them out, or give "
                "steps."
            )

    def _check_few_steps(self, steps: int) -> None:
        try:
            check_evaluations(check_steps(steps), self.substeps)
        except (GridError, RangeError) as error:
            raise RecipeError(f"stage {self.name!r}: {error}") from None
        encodes = self.direction == "encode"
        if self.stride not in (1, 2):
            raise RecipeError(
                f"stage {self.name!r}: stride must be 1 (the deterministic sampler) or 2 (the "
                f"stochastic one), got {self.stride}. Use one of them."
            )
        if encodes and self.stride > 1:
            raise RecipeError(
                f"stage {self.name!r}: an encoder of stride {self.stride} has no sampler, which "
                "goes one step of the grid at a time. Use stride 1."
            )
        if encodes and self.order == 2:
            raise RecipeError(
                f"stage {self.name!r}: order must be 1 for an encoder, which starts at the clean "
                "image without a velocity to go on from, got 2. Use more sub-steps."
            )

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
            return GuidanceDistillation(teacher, w=w, states=self.states)
        return StepDistillation(
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

    Raises RecipeError for a name twice, a parent that is not made before, and a stage whose parent
    was not trained for what it is asked.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        """Check that the stages can be made in this order."""
        made: dict[str, Stage | None] = {TEACHER: None}
        if all(stage.name != STAGE_ONE for stage in self.stages):
            made[STAGE_ONE] = Stage(STAGE_ONE, TEACHER, 1)  # brought from elsewhere
        for stage in self.stages:
            if stage.name in made:
                raise RecipeError(f"two stages are named {stage.name!r}. Name one differently.")
            if stage.parent not in made:
                raise RecipeError(
                    f"stage {stage.name!r} starts from {stage.parent!r}, which is not made before "
                    f"it; there are {', '.join(sorted(made))}. Reorder the stages."
                )
            parent = made[stage.parent]
            if parent is not None:
                _check_parent(stage, parent)
            made[stage.name] = stage

    def check_clock(self, clock: Clock) -> None:
        """Raise RecipeError for a stage whose steps are no grid of the teacher's clock.

        clock: number of steps -> grid, as in the teacher's `traits`.
        """
        for stage in self.stages:
            if stage.steps is not None:
                try:
                    clock(stage.steps)
                except GridError as error:
                    raise RecipeError(f"stage {stage.name!r}: {error}") from None

    def __iter__(self) -> Iterator[Stage]:
        """Iterate over the stages in order."""
        return iter(self.stages)

    def remaining(self, done: Sequence[str]) -> tuple[Stage, ...]:
        """Return the stages that are not in `done`, in order: what comes next is the first."""
        return tuple(s for s in self.stages if s.name not in done)

    def cost(self, batch_size: int) -> Cost:
        """Return the whole plan's cost."""
        return sum((s.cost(batch_size) for s in self.stages), Cost(0, 0))


def _check_parent(stage: Stage, parent: Stage) -> None:
    """Raise RecipeError where a stage asks its parent for what that was not trained for."""
    if stage.pair != parent.pair:
        raise RecipeError(
            f"{stage.name} (pair: {stage.pair}) cannot start from {parent.name} (pair: "
            f"{parent.pair}); a pair starts from the teacher or a pair."
        )
    if parent.steps is None:
        return
    if stage.steps is None:
        raise RecipeError(
            f"stage {stage.name!r}: the parent of a stage without steps (stage one) must take any "
            f"number of steps, got {parent.name}, made for {parent.steps}. Start it from "
            f"{TEACHER!r}."
        )
    if stage.direction != parent.direction:
        raise RecipeError(
            f"stage {stage.name!r}: direction must be that of its parent, {parent.direction!r}, "
            f"got {stage.direction!r}. Start it from {TEACHER!r} or {STAGE_ONE!r}."
        )
    if stage.order == 2:
        raise RecipeError(
            f"stage {stage.name!r}: order must be 1 with a parent made for {parent.steps} steps, "
            f"whose steps are DDIM's, got 2. Use order 1, or start it from {TEACHER!r}."
        )
    trained = moves_on(cosine(parent.steps), parent.stride, parent.direction)
    moves = moves_on(cosine(stage.steps), stage.stride, stage.direction)
    asked = [equal_angles(m.phi, m.to, stage.substeps) for m in moves]
    if first_untrained(asked, trained, stage.stride) is not None:
        half = parent.steps // 2 if parent.steps % 2 == 0 and parent.stride == 1 else None
        raise RecipeError(
            f"stage {stage.name!r}: its sub-steps must be steps that {parent.name} was made for "
            f"({parent.steps} steps, stride {parent.stride}), got {stage.steps} steps of "
            f"{stage.substeps} sub-steps, stride {stage.stride}. "
            + (f"Use steps {half} with substeps 2, or s" if half else "S")
            + f"tart it from {TEACHER!r} or {STAGE_ONE!r}."
        )


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
    try:
        check_steps(first), check_steps(last)
    except GridError as error:
        raise RecipeError(str(error)) from None
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
