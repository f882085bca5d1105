"""One student for several numbers of steps: where states lie, what targets are, what they cost."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.core.angle import HALF_PI, rotate
from fewstep.core.grid import cosine
from fewstep.distill.any_steps import AnyStepDistillation, divided, examples
from fewstep.distill.plan import KINDS, Plan, Stage
from fewstep.distill.problem import Regression
from fewstep.distill.steps import StepDistillation
from fewstep.errors import GridError, RangeError, RecipeError
from fewstep.testing import Counting, Gaussian, Mixture, check_stage

G = torch.Generator().manual_seed(0)
MIXTURE = Mixture(torch.randn(3, 2, 2, generator=G, dtype=torch.float64), 0.3)
PAIR = MIXTURE.guided()
COND = torch.arange(60) % 3
X = MIXTURE.draw(COND, G)
W = (0.0, 4.0)


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def to(r: Regression) -> Tensor:
    """Where one step by the target leads."""
    assert r.steps is not None
    return rotate(r.z, r.v_target, HALF_PI / r.steps.double())


def angle(z: Tensor, phi: float) -> Tensor:
    return torch.full((len(z),), phi, dtype=torch.float64)


def on_grid(r: Regression) -> Tensor:
    """The number of its first state, counted from noise on the grid of its own N."""
    assert r.steps is not None
    place = (HALF_PI - r.phi) / HALF_PI * r.steps.double()
    torch.testing.assert_close(place, place.round())
    return place.round().long()


@pytest.mark.parametrize("states", ["noised", "trajectory"])
def test_it_is_a_regression_problem(states: Any) -> None:
    check_stage(AnyStepDistillation(PAIR, (8, 4, 2, 1), order=2, w_range=W, states=states), X, COND)


def test_on_noised_states_each_number_has_the_targets_of_step_distillation() -> None:
    stage = AnyStepDistillation(PAIR, (4, 1, 2), order=2, w_range=W, mixture=(1, 1, 1))
    assert stage.counts == (4, 2, 1)
    r = stage(X, COND, seeded())
    assert r.steps is not None
    assert r.steps.tolist() == [4] * 20 + [2] * 20 + [1] * 20
    for n, substeps in ((4, 2), (2, 4), (1, 8)):
        rows, one = r.steps == n, StepDistillation(PAIR, n, substeps, order=2, w_range=W)
        assert isinstance(r.cond, Tensor)
        wanted = one.target(r.z[rows], on_grid(r)[rows], r.cond[rows], r.w[rows])
        torch.testing.assert_close(r.v_target[rows], wanted, rtol=0, atol=1e-13)


def test_one_trajectory_has_the_steps_of_every_number() -> None:
    """Of four trajectories all steps are taken: each begins where one of the same N has ended."""
    stage = AnyStepDistillation(PAIR, (8, 4, 2, 1), order=2, w_range=W, states="trajectory")
    r = stage(X, COND, seeded())
    assert r.steps is not None
    assert Counter(r.steps.tolist()) == {8: 32, 4: 16, 2: 8, 1: 4}
    ends = to(r)
    noise = r.z[r.steps == 1]
    for n in (8, 4, 2):
        rows, place = r.steps == n, on_grid(r)
        for i in range(n):
            here = rows & (place == i)
            starts = noise if i == 0 else ends[rows & (place == i - 1)]
            apart = torch.cdist(r.z[here], starts)
            assert float(apart.amin(1).max()) < 1e-12
        last = ends[rows & (place == n - 1)]
        assert float(torch.cdist(last, ends[r.steps == 1]).amin(1).max()) < 1e-12


def test_a_trajectory_is_walked_by_sub_steps_of_second_order_throughout() -> None:
    """Its error falls as that of a solver of second order, and is below that of restarts."""
    w = torch.full((6,), 2.0, dtype=torch.float64)
    z = torch.randn(6, 2, generator=seeded(), dtype=torch.float64)

    def end(order: Any, substeps: int) -> Tensor:
        stage = AnyStepDistillation(PAIR, (4, 2), substeps, order, w_range=W, states="trajectory")
        return stage._trajectory(z, COND[:6], w)[-1]

    exact = end(2, 512)
    first, second = ([float((end(o, n) - exact).norm()) for n in (16, 32)] for o in (1, 2))
    assert 1.7 < first[0] / first[1] < 2.3
    assert second[0] / second[1] > 3
    assert second[0] < first[0] / 4


def test_a_gaussians_steps_end_where_its_closed_form_says() -> None:
    teacher = Gaussian(0.3, 0.4)
    stage = AnyStepDistillation(teacher, (4, 2, 1), w_range=W, states="trajectory")
    r = stage(torch.zeros(70, 3, dtype=torch.float64), torch.zeros(70), seeded())
    whole = cosine(8)
    assert r.steps is not None
    for n in (4, 2, 1):
        for i in range(n):
            rows = (r.steps == n) & (on_grid(r) == i)
            part = whole[8 // n * i : 8 // n * (i + 1) + 1]
            z = r.z[rows]
            for phi, after in pairwise(part):
                z = rotate(z, teacher(z, angle(z, phi), torch.zeros(len(z)), z), phi - after)
            torch.testing.assert_close(to(r)[rows], z, rtol=0, atol=1e-12)
    torch.testing.assert_close(to(r)[r.steps == 1], 0.3 + teacher.factor(whole) * r.z[r.steps == 1])


def test_a_mixture_takes_different_steps_of_a_trajectory() -> None:
    stage = AnyStepDistillation(
        PAIR, (8, 4, 1), order=2, w_range=W, states="trajectory", mixture=(3, 2, 1)
    )
    r = stage(X, COND, seeded())
    assert r.steps is not None
    assert Counter(r.steps.tolist()) == {8: 30, 4: 20, 1: 10}
    seen = Counter(zip(r.steps.tolist(), r.w.tolist(), on_grid(r).tolist(), strict=True))
    assert max(seen.values()) == 1
    assert {i for n, _, i in seen if n == 8} == set(range(8))


def test_more_steps_than_a_trajectory_has_are_taken_as_often_as_each_other() -> None:
    """Five of the two steps of N = 2: each twice, and one of them a third time."""
    settings: Any = {"order": 2, "w_range": W, "states": "trajectory"}
    stage = AnyStepDistillation(PAIR, (4, 2, 1), **settings, mixture=(4, 5, 3))
    r = stage(X, COND, seeded())
    assert r.steps is not None
    assert Counter(r.steps.tolist()) == {4: 20, 2: 25, 1: 15}
    seen = Counter(zip(r.steps.tolist(), r.w.tolist(), on_grid(r).tolist(), strict=True))
    assert {n: {c for (m, _, _), c in seen.items() if m == n} for n in (4, 2, 1)} == {
        4: {1}, 2: {2, 3}, 1: {3},
    }  # fmt: skip


def test_the_cost_of_a_pool_is_what_is_evaluated() -> None:
    """Seven updates in pools of three: the third pool is made whole for one update."""
    teacher = Counting(PAIR)
    settings: dict[str, Any] = {"any_steps": [4, 2, 1], "mixture": [4, 4, 4], "updates": 7}
    stage = Stage(None, "teacher", **settings, states="trajectory", pool=3)
    problem = stage.problem(teacher, W)
    for _ in range(3):
        assert len(problem(X[:30], COND[:30], seeded()).z) == 30
    cost = stage.cost(10)
    assert (cost.teacher, cost.student) == (teacher.evaluations, 70)


@pytest.mark.parametrize("batch", [7, 9, 60])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"mixture": [2, 2, 1]},
        {"states": "trajectory"},
        {"states": "trajectory", "any_steps": [2, 1]},
    ],
)
def test_the_cost_is_what_is_evaluated(batch: int, more: dict[str, Any]) -> None:
    teacher = Counting(PAIR)
    stage = Stage(None, "teacher", **{"any_steps": [1, 2, 4], "order": 2, "updates": 3, **more})
    problem = stage.problem(teacher, W)
    r = problem(X[:batch], COND[:batch], seeded())
    assert len(r.z) == batch
    cost = stage.cost(batch)
    assert cost.student == 3 * batch
    assert cost.teacher == 3 * teacher.evaluations


def test_a_batch_is_divided_in_the_ratio_of_the_mixture() -> None:
    assert divided(15, [8, 4, 2, 1]) == [8, 4, 2, 1]
    for batch in range(1, 40):
        parts = divided(batch, [3, 2, 2])
        assert sum(parts) == batch
        assert max(abs(p - batch * m / 7) for p, m in zip(parts, (3, 2, 2), strict=True)) <= 1


def test_a_stage_is_any_step_by_its_any_steps() -> None:
    stage = Stage(None, "teacher", any_steps=[1, 2, 8, 4], order=2, substeps=3, states="trajectory")
    assert (stage.kind, stage.name) == ("any-step-distillation", "student-any")
    assert (stage.counts, stage.steps, stage.sampler) == ((8, 4, 2, 1), None, "deterministic")
    four = stage.at(4)
    assert (four.kind, four.steps, four.substeps) == ("step-distillation", 4, 6)
    assert (four.counts, four.order) == ((4,), 2)
    again = Stage.model_validate(four.model_dump())
    assert again == four
    old = Stage("student-4", "teacher", steps=4)
    assert not {"any_steps", "mixture", "pool"} & set(old.identity())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"any_steps": [8]}, "two or more different numbers"),
        ({"any_steps": [8, 3]}, "divide the largest one"),
        ({"any_steps": [4, 4]}, "two or more different"),
        ({"any_steps": [4, 2], "mixture": [4]}, "mixture must have one whole number"),
        ({"any_steps": [4, 2], "steps": 4}, "steps must be left out"),
        ({"any_steps": [4, 2], "stride": 2}, "stride must be left out"),
        ({"steps": 4, "mixture": [4]}, "mixture must be left out"),
        ({"steps": 4, "pool": 2}, "pool must be left out"),
        ({"kind": "any-step-distillation"}, "needs any_steps"),
    ],
)
def test_a_stage_that_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as found:
        Stage("any", "teacher", **settings)
    assert "\n" not in str(found.value)


def test_what_cannot_teach_or_learn_is_refused() -> None:
    any_step = Stage(None, "teacher", any_steps=[4, 2], updates=1)
    with pytest.raises(RecipeError, match="a student of several numbers of steps"):
        Plan((any_step, Stage("next", "student-any", steps=2, updates=1)))
    four = Stage("four", "teacher", steps=4, updates=1)
    with pytest.raises(RecipeError, match="must take any number of steps, got one made for 4"):
        Plan((four, Stage(None, "four", any_steps=[4, 2], updates=1)))


def test_grids_that_are_not_nested_are_refused() -> None:
    from dataclasses import replace
    from types import SimpleNamespace

    from fewstep.core.denoiser import traits_of

    def clock(steps: int) -> tuple[float, ...]:
        return (*(HALF_PI - 0.1 / steps for _ in range(1)), *cosine(steps)[1:])

    teacher: Any = SimpleNamespace(passes=1, traits=replace(traits_of(PAIR), clock=clock))
    with pytest.raises(GridError, match="must be among those of 4"):
        AnyStepDistillation(teacher, (4, 2), w_range=W)


def test_a_pool_is_of_trajectories_and_steps_are_taken_again_in_a_pool_alone() -> None:
    kind = KINDS["any-step-distillation"]
    stage = Stage(None, "teacher", any_steps=[4, 2], states="trajectory", mixture=[4, 3])
    with pytest.raises(RangeError, match="at most N times pool, 2 for 2 steps, got 3"):
        kind.check_part(stage, 64)
    kind.check_part(stage.model_copy(update={"pool": 2}), 64)
    with pytest.raises(RangeError, match="4 for 2 steps, got 5"):
        kind.check_part(stage.model_copy(update={"pool": 2, "mixture": (4, 5)}), 64)
    with pytest.raises(RangeError, match="pool needs states: trajectory"):
        kind.check_part(stage.model_copy(update={"pool": 2, "states": "noised"}), 64)


@pytest.mark.parametrize("states", ["noised", "trajectory"])
@pytest.mark.parametrize("mixture", [(8, 4, 2, 1), (1, 1, 1, 1)])
def test_a_batch_that_would_never_train_a_number_of_steps_is_refused(
    states: Any, mixture: tuple[int, ...]
) -> None:
    kind, counts = KINDS["any-step-distillation"], (8, 4, 2, 1)
    settings: dict[str, Any] = {"any_steps": counts, "mixture": mixture, "states": states}
    stage = Stage(None, "teacher", **settings)
    refused = []
    for batch in range(1, 30):
        problem = AnyStepDistillation(PAIR, counts, mixture=mixture, w_range=W, states=states)
        made = problem._regression(X[:batch], COND[:batch], seeded())
        assert made.steps is not None
        found = Counter(made.steps.tolist())
        assert examples(batch, mixture, states) == [found[n] for n in counts]
        if len(found) == len(counts):
            problem(X[:batch], COND[:batch], seeded())
            kind.check_part(stage, batch)
            continue
        refused.append(batch)
        with pytest.raises(RangeError, match=f"one of {batch} has none of"):
            problem(X[:batch], COND[:batch], seeded())
        with pytest.raises(RangeError, match=f"one of {batch} has none of"):
            kind.check_part(stage, batch)
    assert {1, 2, 3} <= set(refused) < set(range(1, 10))


def test_stages_of_runs_from_when_there_were_shortcuts_are_read() -> None:
    old = {"parent": "teacher", "any_steps": [4, 2]}
    assert Stage.model_validate({**old, "shortcut": 0.0}) == Stage.model_validate(old)
    with pytest.raises(ValueError, match="shortcut"):
        Stage.model_validate({**old, "shortcut": 0.25})
