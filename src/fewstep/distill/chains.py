"""Two usual plans, each from the guided pair or from stage one.

`chain` is the paper's (stage one -> 16 -> 8 -> ... -> 1 steps); `direct` goes straight to one
number of steps with several sub-steps a stride.
"""

from __future__ import annotations

from typing import Literal

from fewstep.distill.plan import STAGE_ONE, TEACHER, Plan, Stage
from fewstep.errors import RecipeError


def chain(
    first: int,
    last: int = 1,
    *,
    stage_one: int | None,
    updates: int,
    substeps: int = 2,
    order: Literal[1, 2] = 1,
) -> Plan:
    """Return the paper's chain: stage one, then `first`, first/2, ..., `last` steps.

    stage_one: its updates; None leaves it out, and `first` is made from the guided pair.
    updates: of each later stage. substeps, order: of `first`; those after it have two sub-steps of
    DDIM. Raises RecipeError unless first is last times a power of two.
    """
    ratio, rest = divmod(first, max(last, 1))
    if last < 1 or rest or ratio < 1 or ratio & (ratio - 1):
        raise RecipeError(f"a chain from {first} to {last} steps does not halve. Use 16 to 1.")
    stages = [] if stage_one is None else [Stage(STAGE_ONE, TEACHER, updates=stage_one)]
    parent, steps = (TEACHER if stage_one is None else STAGE_ONE), first
    while steps >= last:
        stage = Stage(None, parent, updates=updates, steps=steps, substeps=substeps, order=order)
        stages.append(stage)
        parent, steps, substeps, order = stage.name, steps // 2, 2, 1
    return Plan(tuple(stages))


def direct(
    steps: int,
    *,
    updates: int,
    stage_one: int | None = None,
    substeps: int = 4,
    order: Literal[1, 2] = 2,
) -> Plan:
    """Return a plan straight to `steps`, `substeps` teacher steps a stride, no student between.

    By default from the guided pair by steps of second order: of the plans to four steps that were
    compared (docs/lab/cost-to-quality.md) the nearest to the teacher for what it costs.
    """
    return chain(steps, steps, stage_one=stage_one, updates=updates, substeps=substeps, order=order)
