"""What the report of a run measures: which models, at how many steps, by which samplers."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.distill.plan import KINDS, TEACHER, Plan, Stage
from fewstep.measure.cell import DDIM, Line
from fewstep.measure.solvers import SOLVERS
from fewstep.recipes.schema import EvaluateConfig

HEUN = "heun"  # the sampler with two evaluations per step, and one in the last


@dataclass(frozen=True)
class Wanted:
    """One column of cells: a model at one number of steps, by one sampler, at every w.

    name: of the model's folder. shown: its name in the tables.
    """

    name: str
    shown: str
    steps: int | None
    sampler: str | None


def reference_of(settings: EvaluateConfig) -> Line:
    """Return the line of the many-step teacher that the others are compared with."""
    return Line(TEACHER, settings.reference_sampler, settings.reference_steps)


def wanted_of(plan: Plan, settings: EvaluateConfig) -> list[Wanted]:
    """Return the columns of a report beside the reference."""
    lines = [Line(TEACHER, DDIM, n) for n in settings.teacher_steps]
    lines += [Line(TEACHER, s, n) for s in SOLVERS for n in settings.solver_steps]
    known = reference_of(settings)
    out = [Wanted(TEACHER, TEACHER, x.steps, x.sampler) for x in lines if x != known]
    shown = shown_names(plan)
    for stage in plan:
        if stage.direction == "encode":
            continue
        own = stage.any_steps and stage.counts  # one column for each
        counts = own or ((None,) if stage.steps else counts_of(stage, settings))
        out += [Wanted(stage.name, shown[stage.name], n, None) for n in counts]
    return list(dict.fromkeys(out))


def counts_of(stage: Stage, settings: EvaluateConfig) -> tuple[int, ...]:
    """Return the numbers of steps to measure a model at that takes any number."""
    free = stage.sampler is None
    return settings.stage_one_steps if free else settings.consistency_steps


def shown_names(plan: Plan) -> dict[str, str]:
    """Return the name of each stage in the tables: {name of the stage: name that is shown}.

    The sampler has a column of its own, so `student-4-stochastic` is shown as `student-4`, unless
    that would give two stages the same row. Every other name is shown as it is.
    """
    taken = {(s.name, s.sampler) for s in plan}
    plain = {s: _plain_name(s) for s in plan}
    return {s.name: s.name if (plain[s], s.sampler) in taken else plain[s] for s in plan}


def _plain_name(stage: Stage) -> str:
    """Return a default name without its sampler; any other name as it is."""
    default_name = KINDS[stage.kind].default_name
    plain = default_name(stage.model_copy(update={"stride": 1}))
    return plain if stage.name == default_name(stage) else stage.name


def evaluations_of(plan: Plan, settings: EvaluateConfig) -> int:
    """Return the network evaluations of one sample in every cell, and for `fd_to_teacher`."""
    reference = reference_of(settings)
    columns = [Wanted(TEACHER, TEACHER, reference.steps, reference.sampler)]
    columns *= 1 + settings.fd_to_teacher  # drawn again with another seed
    columns += wanted_of(plan, settings)
    guided = {TEACHER, *(stage.name for stage in plan if stage.pair)}
    own = {stage.name: stage.steps for stage in plan}
    total = 0
    for column in columns:
        steps = column.steps or own[column.name] or 0
        calls = 2 * steps - 1 if column.sampler == HEUN else steps
        # At w = 0 a guided model skips the unconditional pass.
        total += sum(calls * (1 + (column.name in guided and w != 0)) for w in settings.w)
    return total
