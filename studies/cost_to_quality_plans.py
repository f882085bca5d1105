"""The plans of docs/lab/cost-to-quality.md: each trains a student of four steps on the digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fewstep.distill.plan import STAGE_ONE, TEACHER
from fewstep.recipes.config import Recipe, check_recipe

Settings = dict[str, Any]
FULL: Settings = {"parent": TEACHER, "updates": 2000}
SHORT: Settings = {"parent": TEACHER, "updates": 600}


@dataclass(frozen=True)
class Entry:
    """One plan to four steps.

    Attributes:
        label: its name in the table.
        stage_one: how stage one is trained, None for a plan without it.
        students: the stages after it.
        shares: whose stage one this plan uses: "demo", or the name of another entry. None trains
            its own. The cost of a shared stage one is counted all the same.
        distill, network: other settings of the recipe.
    """

    label: str
    stage_one: Settings | None
    students: tuple[Settings, ...]
    shares: str | None = None
    distill: Settings = field(default_factory=dict)
    network: Settings = field(default_factory=dict)

    def recipe(self, base: Recipe, seed: int, *, whole: bool = False) -> Recipe:
        """Return a recipe with this plan. whole: include a stage one that is shared."""
        own = self.stage_one if whole or self.shares is None else None
        stages = ([own] if own else []) + list(self.students)
        data = base.model_dump(mode="json")
        data |= {"name": "cost-to-quality", "about": "docs/lab/cost-to-quality.md", "seed": seed}
        data["distill"] |= {"stages": stages, **self.distill}
        data["network"] |= self.network
        return check_recipe(data, "cost_to_quality")

    def evaluations(self, base: Recipe) -> int:
        """Return the network evaluations that the whole plan costs."""
        recipe = self.recipe(base, 0, whole=True)
        return recipe.distill.plan().cost(recipe.distill.batch_size).evaluations


def chain_to_4(first: int, updates: Sequence[int]) -> tuple[Settings, ...]:
    """Return progressive distillation from stage one: students of `first`, first / 2, ... steps.

    updates: of each.
    """
    parent, out = STAGE_ONE, []
    for k, n in enumerate(updates):
        steps = first >> k
        out.append({"parent": parent, "steps": steps, "updates": n})
        parent = f"student-{steps}"
    return tuple(out)


def straight(substeps: int, updates: int, parent: str = STAGE_ONE, **more: Any) -> tuple[Settings]:
    """Return one stage to four steps."""
    return ({"parent": parent, "steps": 4, "substeps": substeps, "updates": updates, **more},)


TRAJECTORY: Settings = {"states": "trajectory"}
# In the order of their importance: `make` may be stopped before the last.
PLANS: dict[str, Entry] = {
    "chain-1024": Entry("the paper's chain, 512 to 4", FULL, chain_to_4(512, [250] * 8), "demo"),
    "short-8": Entry("short stage one, 8 sub-steps", SHORT, straight(8, 333)),
    "full-8-4": Entry("full stage one, to 8, to 4", FULL, chain_to_4(8, [500, 400]), "demo"),
    "none-8": Entry("no stage one, 8 sub-steps", None, straight(8, 350, TEACHER)),
    "short-8-t": Entry(
        "short, 8 sub-steps, trajectories", SHORT, straight(8, 333, **TRAJECTORY), "short-8"
    ),
    "short-4": Entry("short, 4 sub-steps", SHORT, straight(4, 523), "short-8"),
    "short-16": Entry("short, 16 sub-steps", SHORT, straight(16, 193), "short-8"),
    "shorter-8": Entry(
        "300 updates of stage one, 8 sub-steps",
        {"parent": TEACHER, "updates": 300},
        straight(8, 469),
    ),
    "longer-8": Entry(
        "900 updates of stage one, 8 sub-steps",
        {"parent": TEACHER, "updates": 900},
        straight(8, 196),
    ),
    "short-4-2": Entry(
        "short, to 8 with 4 sub-steps, to 4",
        SHORT,
        (
            {"parent": STAGE_ONE, "steps": 8, "substeps": 4, "updates": 305},
            {"parent": "student-8", "steps": 4, "updates": 305},
        ),
        "short-8",
    ),
    "none-4": Entry("no stage one, 4 sub-steps", None, straight(4, 604, TEACHER)),
    "none-16": Entry("no stage one, 16 sub-steps", None, straight(16, 190, TEACHER)),
    "none-2-second": Entry(
        "no stage one, 2 sub-steps of order 2", None, straight(2, 949, TEACHER, order=2)
    ),
    "none-3-second": Entry(
        "no stage one, 3 sub-steps of order 2", None, straight(3, 738, TEACHER, order=2)
    ),
    "none-4-second": Entry(
        "no stage one, 4 sub-steps of order 2", None, straight(4, 604, TEACHER, order=2)
    ),
    "none-4-second-t": Entry(
        "no stage one, 4 sub-steps of order 2, trajectories",
        None,
        straight(4, 604, TEACHER, order=2),
        distill=TRAJECTORY,
    ),
    "none-4-second-plain": Entry(
        "no stage one, 4 sub-steps of order 2, plain w",
        None,
        straight(4, 604, TEACHER, order=2),
        network={"w_band": None},
    ),
    "none-4-second-333": Entry("the same, 333 updates", None, straight(4, 333, TEACHER, order=2)),
    "none-4-second-2416": Entry(
        "the same, 2,416 updates", None, straight(4, 2416, TEACHER, order=2)
    ),
    "none-8-4-second": Entry(
        "no stage one, to 8 with 2 sub-steps of order 2, to 4",
        None,
        (
            {"parent": TEACHER, "steps": 8, "updates": 554, "order": 2},
            {"parent": "student-8", "steps": 4, "updates": 554},
        ),
    ),
    "direct-4-second": Entry(
        "full stage one, 4 sub-steps of order 2", FULL, straight(4, 640, order=2), "demo"
    ),
    "short-4-second": Entry(
        "short, 4 sub-steps of order 2", SHORT, straight(4, 523, order=2), "short-8"
    ),
    "short-8-tt": Entry(
        "short, trajectories in both stages", SHORT, straight(8, 333), distill=TRAJECTORY
    ),
    "short-8-plain": Entry(
        "short, 8 sub-steps, plain w", SHORT, straight(8, 333), network={"w_band": None}
    ),
    "direct-8": Entry("full stage one, 8 sub-steps", FULL, straight(8, 410), "demo"),
    "direct-4": Entry("full stage one, 4 sub-steps", FULL, straight(4, 640), "demo"),
    "full-8-4-plain": Entry(
        "full stage one, to 8, to 4, plain w",
        FULL,
        chain_to_4(8, [500, 400]),
        network={"w_band": None},
    ),
    "none-8-t": Entry(
        "no stage one, trajectories", None, straight(8, 350, TEACHER), distill=TRAJECTORY
    ),
}
# (plan, seed) -> model -> its folder beside the demo's: other runs have trained these models with
# the same settings and seed. `make` copies them where they exist.
BROUGHT: dict[tuple[str, int], dict[str, str]] = {
    ("full-8-4", 0): {k: f"comparisons/{k}" for k in ("student-8", "student-4")},
    ("direct-8", 0): {"student-4": "comparisons/direct-4-of-8"},
    ("direct-4", 0): {"student-4": "comparisons/direct-4-of-4"},
    ("full-8-4-plain", 0): {
        name: f"compare-plain-w/{name}" for name in ("stage-one", "student-8", "student-4")
    },
}
