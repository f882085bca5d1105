"""Consistency distillation against closed forms: the ends of trajectories, and the exact jump."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fewstep
from fewstep.core.angle import HALF_PI, v_from_x, x_from_v
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser, Traits
from fewstep.core.grid import cosine
from fewstep.core.samplers import SAMPLERS, run
from fewstep.core.seed import Noise
from fewstep.distill.consistency import ConsistencyDistillation, SelfConsistency
from fewstep.distill.guidance import GuidanceDistillation
from fewstep.distill.plan import STAGE_ONE, TEACHER, Plan, Stage
from fewstep.distill.problem import AsksAverage, Regression
from fewstep.distill.steps import StepDistillation
from fewstep.errors import RangeError, RecipeError
from fewstep.recipes.config import check_recipe
from fewstep.testing import Counting, Gaussian, GaussianJump, Mixture, check_denoiser, check_stage

G = torch.Generator().manual_seed(0)
MIXTURE = Mixture(torch.randn(3, 2, 2, generator=G, dtype=torch.float64), 0.3)
COND = torch.arange(32) % 3
X = MIXTURE.draw(COND, G)
GAUSSIAN, JUMP = Gaussian(0.3, 0.4), GaussianJump(0.3, 0.4)
FORMS: list[dict[str, Any]] = [{"order": 1}, {"order": 2, "states": "trajectory"}]


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lent(problem: SelfConsistency, student: Denoiser) -> SelfConsistency:
    @contextmanager
    def average() -> Iterator[Denoiser]:
        with torch.no_grad():
            yield student

    problem.lend(average)
    return problem


def jump(r: Regression) -> Tensor:
    return JUMP(r.z, r.phi, r.cond, r.w)


def states(count: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(count, 3, dtype=torch.float64), torch.zeros(count)


def test_every_state_of_a_trajectory_leads_to_where_ddim_ends() -> None:
    r = ConsistencyDistillation(GAUSSIAN, substeps=8, order=1)(*states(40), seeded())
    ends, angles = x_from_v(r.z, r.v_target, r.phi).reshape(8, 5, 3), r.phi.reshape(8, 5)
    for trajectory in range(5):
        factor = GAUSSIAN.factor((*angles[:, trajectory].tolist(), 0.0))
        expected = 0.3 + factor * r.z[trajectory]
        for end in ends[:, trajectory]:
            torch.testing.assert_close(end, expected, rtol=0, atol=1e-11)


def test_trajectories_begin_at_noise_and_their_angles_have_no_gaps() -> None:
    stage = ConsistencyDistillation(MIXTURE.guided(), substeps=4)
    angles = torch.cat([stage(X, COND, seeded(s)).phi.reshape(4, 8) for s in range(200)], dim=1)
    assert bool((angles[0] == HALF_PI).all())
    assert bool((angles.diff(dim=0) < 0).all())
    # One step of each K - 1/2; the first half of one alone is left out.
    inner = angles[1:].flatten() / HALF_PI
    counts = torch.histc(inner, 12, 0.0, 1 - 0.5 / 3.5)
    assert float(counts.min()) > 0.8 * len(inner) / 12
    assert float(inner.min()) > 1 / 1024


def test_the_error_of_the_end_falls_by_the_order_of_the_steps() -> None:
    for order in (1, 2):
        errors = []
        for points in (32, 64, 128):
            stage = ConsistencyDistillation(GAUSSIAN, substeps=points, order=order)  # type: ignore[arg-type]
            r = stage(*states(8 * points), seeded())
            first = slice(8)
            error = x_from_v(r.z, r.v_target, r.phi)[first] - (0.3 + 0.4 * r.z[first])
            errors.append(float((error / r.z[first]).abs().mean()))
        for a, b in zip(errors, errors[1:], strict=False):
            assert math.log2(a / b) == pytest.approx(order, abs=0.25), (order, errors)


def test_the_target_is_the_exact_jump_from_every_state_up_to_the_teachers_error() -> None:
    r = ConsistencyDistillation(GAUSSIAN, substeps=64)(*states(512), seeded())
    assert float((r.v_target - jump(r)).abs().max()) < 5e-3


@pytest.mark.parametrize("form", FORMS)
def test_a_jump_that_agrees_with_itself_is_its_own_target(form: dict[str, Any]) -> None:
    """Data that are nearly one point: DDIM makes no error, and the exact velocity is the jump."""
    point = Gaussian(0.7, 1e-6)
    r = lent(SelfConsistency(point, substeps=8, **form), point)(*states(64), seeded())
    torch.testing.assert_close(r.v_target, point(r.z, r.phi, r.cond, r.w), rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_the_exact_jump_map_is_its_own_target_up_to_the_teachers_error(
    form: dict[str, Any],
) -> None:
    def off(points: int) -> float:
        stage = lent(SelfConsistency(GAUSSIAN, substeps=points, **form), JUMP)
        r = stage(states(8 * points)[0] + 0.3, states(8 * points)[1], seeded())
        return float((r.v_target - jump(r)).square().mean().sqrt())

    coarse, fine = off(32), off(128)
    assert fine < 0.05
    assert fine < coarse / 3


def wrong(z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
    return 0.2 * z + 0.1 * torch.cos(3 * phi)[:, None] + 0.05 * w[:, None]


def test_a_jump_that_disagrees_is_moved_to_the_one_further_on() -> None:
    stage = lent(SelfConsistency(GAUSSIAN, substeps=8, order=2, states="trajectory"), wrong)  # type: ignore[arg-type]
    r = stage(*states(40), seeded())
    ends = x_from_v(r.z, wrong(r.z, r.phi, r.cond, r.w), r.phi).reshape(8, 5, 3)
    # At pure noise it is plain consistency distillation.
    expected = v_from_x(r.z[:5], ends[1], r.phi[:5])
    torch.testing.assert_close(r.v_target[:5], expected, rtol=0, atol=1e-12)
    # Elsewhere the move is cos(phi) times the derivative of the end along the trajectory.
    h = (r.phi[15:20] - r.phi[20:25])[:, None]
    slope = torch.cos(r.phi[15:20])[:, None] * (ends[3] - ends[4]) / h
    moved = r.v_target[15:20] - wrong(r.z, r.phi, r.cond, r.w)[15:20]
    torch.testing.assert_close(moved, slope, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_both_targets_pass_the_public_check(dtype: torch.dtype) -> None:
    teacher, x = MIXTURE.guided(), X.to(dtype)
    check_stage(ConsistencyDistillation(teacher, substeps=8), x, COND)
    for form in FORMS:
        check_stage(lent(SelfConsistency(teacher, substeps=8, **form), MIXTURE), x, COND)


def test_the_exact_jump_is_a_denoiser_that_needs_its_own_sampler() -> None:
    check_denoiser(JUMP, torch.zeros(4), shape=(3,))
    z = Noise(0, range(50)).draw((3,), torch.float64, torch.device("cpu"))
    none = torch.zeros(50, dtype=torch.float64)

    def drawn(name: str, steps: int) -> Tensor:
        return run(SAMPLERS[name], JUMP, z, none, none, cosine(steps), Noise(1, range(50)))

    one = drawn("deterministic", 1)
    torch.testing.assert_close(one, 0.3 + 0.4 * z, rtol=0, atol=1e-12)
    assert torch.equal(drawn("consistency", 1), one)
    # DDIM leaves the trajectory: at pi/4 its state deviates by cos s + sin, not sqrt(D).
    factor = (0.4 + 1.0) / math.sqrt(0.4**2 + 1.0)
    torch.testing.assert_close(
        drawn("deterministic", 2), 0.3 + 0.4 * factor * z, rtol=0, atol=1e-12
    )


def test_the_consistency_sampler_is_for_models_that_jump() -> None:
    cond = torch.zeros(4)
    x = fewstep.sample(JUMP, cond, steps=3, shape=(3,))
    assert torch.equal(x, fewstep.sample(JUMP, cond, steps=3, shape=(3,), sampler="consistency"))
    with pytest.raises(RangeError, match="made for the 'consistency' sampler, got sampler 'deter"):
        fewstep.sample(JUMP, cond, steps=3, shape=(3,), sampler="deterministic")
    with pytest.raises(RangeError, match="needs a model that was made for it"):
        fewstep.sample(GAUSSIAN, cond, steps=3, shape=(3,), sampler="consistency")


def test_its_moves_go_to_clean_and_back_up() -> None:
    grid = cosine(3)
    moves = [tuple(move) for move in SAMPLERS["consistency"].moves(grid)]
    assert moves == [(grid[0], 0, grid[1]), (grid[1], 0, grid[2]), (grid[2], 0, 0)]
    assert SAMPLERS["consistency"].moves(cosine(2)) == SAMPLERS["stochastic"].moves(cosine(2))


def stage(**more: Any) -> Stage:
    settings = {"kind": "consistency-distillation", "substeps": 8, "order": 2, "updates": 3}
    return Stage(None, more.pop("parent", TEACHER), **{**settings, **more})


@pytest.mark.parametrize(
    ("made", "own"),
    [
        (stage(), 0),
        (stage(parent=STAGE_ONE), 0),
        (stage(target="self", states="trajectory"), 1),
        (stage(target="self", order=1), 2),
    ],
)
def test_the_cost_said_before_is_the_cost_counted_after(made: Stage, own: int) -> None:
    teacher = Counting(MIXTURE if made.parent == STAGE_ONE else MIXTURE.guided())
    student, problem = Counting(MIXTURE), made.problem(teacher, (0.0, 4.0))
    assert isinstance(problem, AsksAverage) == (own > 0)
    if isinstance(problem, SelfConsistency):
        lent(problem, student)
    for seed in range(3):
        problem(X, COND, seeded(seed))
    assert student.evaluations == own * 3 * len(X)
    cost = made.cost(len(X))
    assert (teacher.evaluations + student.evaluations, 3 * len(X)) == (cost.teacher, cost.student)


def test_a_student_goes_on_under_its_teacher() -> None:
    first, then = stage(), stage(parent="consistency", target="self", order=1)
    plan = Plan((first, then))
    assert [(s.name, s.teacher, s.sampler, s.steps) for s in plan] == [
        ("consistency", TEACHER, "consistency", None),
        ("self-consistency", TEACHER, "consistency", None),
    ]
    assert then.cost(8).teacher == 3 * 8 * (2 + 2)
    assert "target" not in first.identity()
    assert "target" not in Stage(None, TEACHER, steps=4).identity()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ConsistencyDistillation(GAUSSIAN, substeps=2), "must lie in .4, 100000., got 2"),
        (lambda: ConsistencyDistillation(GAUSSIAN, order=3), "order = 3; it is 1 or 2"),  # type: ignore[arg-type]
        (lambda: ConsistencyDistillation(GAUSSIAN, (2.0, 1.0)), "w_range = "),
        (lambda: ConsistencyDistillation(JUMP), "made for the sampler 'consistency'"),
        (lambda: GuidanceDistillation(JUMP), "made for the sampler 'consistency'"),
        (lambda: StepDistillation(JUMP, 4, w_range=(0, 1)), "made for the sampler 'consistency'"),
        (lambda: SelfConsistency(GAUSSIAN), "order must be 1 where states are noised"),
        (lambda: ConsistencyDistillation(GAUSSIAN)(*states(40), seeded()), "multiple of substeps"),
    ],
)
def test_what_makes_no_stage_is_refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(RangeError, match=says):
        call()


def test_teachers_that_cannot_give_trajectories_are_refused() -> None:
    class Few:
        passes, traits = 1, Traits(w_range=(0.0, 2.0))

        __call__ = GAUSSIAN.__call__

    with pytest.raises(RangeError, match="wider than the teacher's"):
        ConsistencyDistillation(Few(), (0.0, 3.0))
    few = Few()
    few.traits = replace(few.traits, steps=(4,))
    with pytest.raises(RangeError, match="must take any number of steps, got one made for 4"):
        ConsistencyDistillation(few, (0.0, 2.0))


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ([{"substeps": 16}], "a batch of 24 must be a multiple of substeps"),
        ([{"substeps": 2}], r"substeps of consistency distillation must lie in \[4, "),
        ([{"substeps": 8, "steps": 4}], "steps must be left out of consistency-distillation"),
        ([{"substeps": 8, "target": "own"}], "target must be 'end' or 'self'"),
        ([{"substeps": 8, "target": "self", "order": 2}], "order must be 1 where states are"),
        (
            [{"substeps": 8}, {"parent": "consistency", "kind": None, "steps": 4}],
            "made for the sampler 'consistency'",
        ),
        (
            [{"kind": None, "steps": 4, "name": "few"}, {"parent": "few", "substeps": 8}],
            "must start from one of as many, got few, made for 4",
        ),
    ],
)
def test_recipes_that_make_no_sense_are_refused(stages: list[dict[str, Any]], says: str) -> None:
    defaults = {"parent": TEACHER, "kind": "consistency-distillation"}
    own = [{k: v for k, v in {**defaults, **s}.items() if v is not None} for s in stages]
    recipe = {"name": "a", "data": {"name": "digits"}, "distill": {"batch_size": 24, "stages": own}}
    with pytest.raises(RecipeError, match=says):
        check_recipe(recipe, "recipe.yaml").distill.plan()


def test_the_target_of_noised_states_takes_any_batch() -> None:
    one = {"parent": TEACHER, "kind": "consistency-distillation", "target": "self", "substeps": 16}
    recipe = {"name": "a", "data": {"name": "digits"}, "distill": {"batch_size": 24}}
    recipe["distill"]["stages"] = [one]  # type: ignore[index]
    (made,) = check_recipe(recipe, "recipe.yaml").distill.plan()
    problem = lent(made.problem(MIXTURE.guided(), (0.0, 4.0)), MIXTURE)  # type: ignore[arg-type]
    assert len(problem(X[:24], COND[:24], seeded()).z) == 24


def test_self_consistency_needs_the_average_of_the_student() -> None:
    with pytest.raises(RangeError, match="none was lent"):
        SelfConsistency(GAUSSIAN, substeps=8, order=1)(*states(64), seeded())
