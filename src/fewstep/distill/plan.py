"""The plan of a distillation as data: what is made, from what, and what it will cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser, Traits
from fewstep.core.grid import MAX_STEPS
from fewstep.distill.any_steps import any_step_distillation
from fewstep.distill.consistency import Target, consistency_distillation
from fewstep.distill.guidance import STAGE_ONE as STAGE_ONE
from fewstep.distill.guidance import guidance_distillation
from fewstep.distill.matching import distribution_matching
from fewstep.distill.pretrain import TEACHER as TEACHER
from fewstep.distill.pretrain import pretraining
from fewstep.distill.problem import MOST_POOLED, Problem
from fewstep.distill.samples import sample_distillation
from fewstep.distill.steps import Direction, step_distillation
from fewstep.distill.trajectory import States
from fewstep.errors import FewstepError, RangeError, RecipeError, first_wrong

KINDS = {
    kind.name: kind
    for kind in (
        pretraining,
        guidance_distillation,
        step_distillation,
        consistency_distillation,
        any_step_distillation,
        sample_distillation,
        distribution_matching,
    )
}
DEFAULT_KINDS = (guidance_distillation.name, step_distillation.name)  # without and with steps
Count: TypeAlias = Annotated[int, Field(ge=1, le=MAX_STEPS)]


@dataclass(frozen=True)
class Cost:
    """Network evaluations, in examples: of what is only evaluated, and of what is trained.

    What is only evaluated is the teacher, and the student's average where targets come from it.
    A backward pass is counted as two evaluations.
    """

    teacher: int
    student: int

    @property
    def evaluations(self) -> int:
        """Everything in units of one forward pass of one example."""
        return self.teacher + 3 * self.student


class Stage(BaseModel):
    """One student: how it is made. The recipe's entry, the plan's node, and a part of the card.

    In Python name and parent may be given by position: `Stage("student-4", "teacher", steps=4)`.

    Attributes:
        name: name of the student and of its folder; by default that of its kind: stage-one,
            student-4.
        parent: name of its teacher: `teacher` for the guided teacher, else an earlier stage.
        kind: one of `KINDS`; by default guidance distillation (stage one) without steps, step
            distillation (stage two) with steps, and any-step distillation with any_steps.
        steps: sampling steps of the student; null: any number (stage one).
        any_steps: in place of steps, the numbers of steps of one any-step student, such as
            [8, 4, 2, 1]; its number of steps is chosen when it is sampled.
        substeps: the teacher's steps that become one of the student; of an any-step student, one of
            its largest number of steps; of consistency distillation its steps from noise to clean.
        order: order of the solver that makes the sub-steps: 1 is DDIM, 2 extrapolates velocities
            (math.md 5). The cost is the same.
        stride: 2 for a student of the stochastic sampler.
        direction: "decode" draws images; "encode" makes an encoder, from an image to its noise.
        pair: the student replaces the network, not the guided teacher: it learns the conditional
            and the unconditional pass alike, and is itself guided by two passes.
        mixture: of an any-step student, how many examples of each number of steps N are taken
            together, in the order of any_steps from the largest; by default N, and more with a pool
            alone.
        pool: of kinds whose examples come from few trajectories (any-step, consistency and sample
            distillation), how many updates in a row share a pool of them. The examples are dealt
            to these updates at random.
        dropout: of conditions, in pretraining; leave it out elsewhere.
        target: of consistency distillation: the "end" of the teacher's trajectory, or the end that
            the student's own average says one step of the teacher further on, "self".
        real: of distribution matching: name of the model whose samples the student's are to be
            distributed as, an earlier stage without steps; null: the guided teacher.
        updates: of its training; null takes those of the recipe's stages.
        lr: learning rate; null takes that of the recipe's stages.
        states: "noised" or "trajectory"; null takes that of the recipe's stages.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = ""
    parent: str = Field(min_length=1)
    kind: str = ""
    steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    any_steps: tuple[Count, ...] = Field((), max_length=100)
    substeps: int = Field(2, ge=1, le=MAX_STEPS)
    order: Literal[1, 2] = 1
    stride: Literal[1, 2] = 1
    direction: Direction = "decode"
    pair: bool = False
    mixture: tuple[Count, ...] = Field((), max_length=100)
    pool: int = Field(1, ge=1, le=MOST_POOLED)
    dropout: float | None = Field(None, ge=0.0, lt=1.0)
    target: Target = "end"
    real: str | None = Field(None, min_length=1)
    updates: int | None = Field(None, ge=1, le=1_000_000_000)
    lr: float | None = Field(None, gt=0.0, le=10.0)
    states: States | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_old_keys(cls, given: Any) -> Any:
        """Leave out `shortcut: 0.0`, which runs of development versions wrote for every stage."""
        if isinstance(given, dict) and given.get("shortcut") == 0:
            return {key: value for key, value in given.items() if key != "shortcut"}
        return given

    def __init__(self, name: str | None = None, parent: str = "", **settings: Any) -> None:
        """Raise RecipeError for numbers out of range, and settings that do not go together."""
        try:
            super().__init__(name=name, parent=parent, **settings)
        except ValidationError as error:
            raise RecipeError(f"stage {name!r}: {first_wrong(error)}") from None

    # As pydantic's own: what is read from a recipe or a card does not pass through it, so that a
    # wrong key is named with its place there.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @field_validator("name", "kind", mode="before")
    @classmethod
    def _default(cls, given: Any) -> Any:
        if given == "":
            raise ValueError("must be a word; leave it out for the default")
        return "" if given is None else given

    @model_validator(mode="after")
    def _resolve(self) -> Stage:
        """Fill in kind and name, and check the settings by building the problem."""
        if not self.kind:
            kind = any_step_distillation.name if self.any_steps else self._default_kind
            object.__setattr__(self, "kind", kind)
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind[:40]!r}")
        if not self.name:
            object.__setattr__(self, "name", KINDS[self.kind].default_name(self))
        own, fields = KINDS[self.kind].settings, type(self).model_fields
        others = {key for kind in KINDS.values() for key in kind.settings - own}
        idle = sorted(k for k in others if getattr(self, k) != fields[k].default)
        if idle:
            one = self.kind == DEFAULT_KINDS[0] and self.steps is None
            hint = ", the stage without steps; add steps, or leave them out" if one else ""
            raise ValueError(f"{', '.join(idle)} must be left out of {self.kind}{hint}")
        try:
            self.traits_after(Traits())
        except FewstepError as error:
            raise ValueError(str(error).removesuffix(".")) from None
        return self

    @property
    def _default_kind(self) -> str:
        return DEFAULT_KINDS[self.steps is not None]

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of steps that the student is made for; () for any number."""
        few = () if self.steps is None else (self.steps,)
        return tuple(sorted(self.any_steps, reverse=True)) or few

    def at(self, steps: int) -> Stage:
        """Return the stage of an any-step student for one of its numbers of steps alone."""
        fields = type(self).model_fields
        own = {key: fields[key].default for key in ("any_steps", "mixture", "pool")}
        own |= {"kind": DEFAULT_KINDS[1], "steps": steps}
        return self.model_copy(
            update={**own, "substeps": self.substeps * max(self.any_steps) // steps}
        )

    @property
    def sampler(self) -> str | None:
        """Name of the sampler that the student is made for; None where it is free."""
        return KINDS[self.kind].sampler(self)

    @property
    def teacher(self) -> str:
        """Name of the model whose answers make the targets: the parent, unless the kind differs."""
        return KINDS[self.kind].teacher(self)

    @property
    def passes(self) -> int:
        """Network evaluations of one call of its teacher."""
        return 2 if self.teacher == TEACHER and not self.pair else 1

    def problem(
        self, teacher: Denoiser, w_range: tuple[float, float], null_cond: Cond | None = None
    ) -> Problem:
        """Return the stage's regression problem under the teacher's answers.

        null_cond: of a pair, whose teacher is one network, and of pretraining.
        """
        return KINDS[self.kind].problem(self, teacher, w_range, null_cond)

    def traits_after(
        self,
        parent: Traits,
        w_range: tuple[float, float] = (0.0, 0.0),
        teacher: Traits | None = None,
    ) -> Traits:
        """Return the traits of the student of a model with these traits.

        teacher: of another model, where the parent is not the one that answers.

        Raises a FewstepError where one of the two was not trained for what the stage asks.
        """
        other = self.teacher != self.parent
        if other and parent.steps is not None and parent.steps != (self.steps,):
            raise RangeError(
                f"a student of {self.steps} steps must start from one of as many, got "
                f"{self.parent}, made for {parent.steps[0]}. Use another parent."
            )
        asked = (teacher or Traits()) if other else parent
        planned: Any = SimpleNamespace(traits=asked, passes=1)  # all that a problem checks
        self.problem(planned, w_range, torch.tensor([0]))
        known = None if self.pair else w_range
        return replace(parent, steps=self.counts or None, sampler=self.sampler, w_range=known)

    def identity(self) -> dict[str, Any]:
        """Return what the student depends on, beside the settings of its training.

        A setting that has its first value is left out, so that a run which was begun before there
        was a choice goes on.
        """
        states, kind = (None, "noised"), (self._default_kind,)
        once: dict[str, tuple[Any, ...]] = {"states": states, "kind": kind, "order": (1,)}
        once |= {
            "dropout": (None,),
            "any_steps": ((),),
            "mixture": ((),),
            "pool": (1,),
        }
        once |= {"target": ("end",), "real": (None,)}
        settings = self.model_dump(exclude={"lr"})
        return {key: value for key, value in settings.items() if value not in once.get(key, ())}

    def cost(self, batch_size: int) -> Cost:
        """Return the cost of the stage, whatever its states. Raises RecipeError without updates."""
        if self.updates is None:
            raise RecipeError(f"stage {self.name!r}: updates must be given. Add updates.")
        kind, made = KINDS[self.kind], batch_size * self.pool
        calls = self.passes * kind.calls(self, made) + kind.own_calls(self, made)
        pools = math.ceil(self.updates / self.pool)
        return Cost(pools * calls, self.updates * batch_size)


@dataclass(frozen=True)
class Plan:
    """The stages in the order in which they are made; every parent comes before its child.

    The teacher comes from elsewhere, and so may the model of stage one. Raises RecipeError for a
    name twice, a parent that is not made before, and one that was not trained for what is asked.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        """Check that the stages can be made in this order."""
        made = {TEACHER: Traits()}
        pairs = {s.name for s in self.stages if s.pair}
        if all(stage.name != STAGE_ONE for stage in self.stages):
            made[STAGE_ONE] = Traits()  # brought from elsewhere
        for stage in self.stages:
            if stage.kind == pretraining.name:
                raise RecipeError(f"stage {stage.name!r}: a plan starts from a trained teacher.")
            if stage.name in made:
                raise RecipeError(f"two stages are named {stage.name!r}. Name one differently.")
            if stage.parent not in made:
                raise RecipeError(
                    f"stage {stage.name!r} starts from {stage.parent!r}, which is not made before "
                    f"it; there are {', '.join(sorted(made))}. Reorder the stages."
                )
            if stage.teacher not in made:
                raise RecipeError(
                    f"stage {stage.name!r} needs {stage.teacher!r}, which is not made before it; "
                    f"there are {', '.join(sorted(made))}. Reorder the stages."
                )
            if stage.parent != TEACHER and stage.pair != (stage.parent in pairs):
                raise RecipeError(
                    f"{stage.name} (pair: {stage.pair}) cannot start from {stage.parent} (pair: "
                    f"{not stage.pair}); a pair starts from the teacher or a pair."
                )
            if any(s.any_steps for s in self.stages if s.name == stage.parent):
                raise RecipeError(
                    f"stage {stage.name!r} cannot start from {stage.parent!r}, a student of "
                    "several numbers of steps. Start from the teacher."
                )
            try:
                before = made[stage.parent], (0.0, 0.0), made[stage.teacher]
                made[stage.name] = stage.traits_after(*before)
            except FewstepError as error:
                raise RecipeError(f"stage {stage.name!r}: {error}") from None

    def __iter__(self) -> Iterator[Stage]:
        """Iterate over the stages in order."""
        return iter(self.stages)

    def cost(self, batch_size: int) -> Cost:
        """Return the whole plan's cost."""
        costs = [s.cost(batch_size) for s in self.stages]
        return Cost(sum(c.teacher for c in costs), sum(c.student for c in costs))
