"""Pretraining and stage one, the plan and its cost."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from fewstep.core.angle import x_from_v
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Traits
from fewstep.distill.any_steps import AnyStepDistillation
from fewstep.distill.chains import chain, direct
from fewstep.distill.consistency import ConsistencyDistillation, SelfConsistency
from fewstep.distill.guidance import GuidanceDistillation
from fewstep.distill.matching import DistributionMatching
from fewstep.distill.plan import KINDS, STAGE_ONE, TEACHER, Plan, Stage
from fewstep.distill.pretrain import Pretrain
from fewstep.distill.problem import Kind, loss
from fewstep.distill.samples import SampleDistillation
from fewstep.distill.steps import StepDistillation
from fewstep.errors import RangeError, RecipeError
from fewstep.testing import Counting, Gaussian, Mixture, check_stage

G = torch.Generator().manual_seed(0)
MIXTURE = Mixture(torch.randn(3, 2, 2, generator=G), 0.3)
COND = torch.arange(3000) % 3
X = MIXTURE.draw(COND, G)


def test_pretraining_asks_for_the_true_velocity() -> None:
    problem = Pretrain(MIXTURE.null_cond, dropout=0.25)
    check_stage(problem, X[:8], COND[:8])
    r = problem(X, COND, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x_from_v(r.z, r.v_target, r.phi), X, rtol=0, atol=1e-5)
    assert isinstance(r.cond, Tensor)
    dropped = r.cond == 3
    assert torch.equal(r.cond[~dropped], COND[~dropped])
    assert float(dropped.float().mean()) == pytest.approx(0.25, abs=0.04)
    assert not r.w.any()
    assert float(r.phi.mean()) == pytest.approx(math.pi / 4, abs=0.03)


def test_the_exact_denoiser_is_the_best_answer_to_pretraining() -> None:
    """Its loss is below that of the same answer shifted, scaled, or of another class."""
    r = Pretrain(MIXTURE.null_cond)(X, COND, torch.Generator().manual_seed(0))
    best = float(loss(MIXTURE(r.z, r.phi, r.cond, r.w), r.v_target, r.phi))
    assert isinstance(r.cond, Tensor)
    others = [
        MIXTURE(r.z, r.phi, r.cond, r.w) + 0.1,
        MIXTURE(r.z, r.phi, r.cond, r.w) * 1.2,
        MIXTURE(r.z, r.phi, (r.cond + 1) % 3, r.w),
    ]
    assert all(float(loss(v, r.v_target, r.phi)) > best for v in others)


def test_stage_one_asks_for_the_guided_velocity_at_each_examples_w() -> None:
    teacher = Counting(MIXTURE.guided())
    problem = GuidanceDistillation(teacher, w_range=(0.5, 3.0))
    check_stage(problem, X[:8], COND[:8])
    teacher.evaluations = 0
    r = problem(X, COND, torch.Generator().manual_seed(0))
    assert teacher.evaluations == 2 * len(X)
    v = torch.cat(
        [
            MIXTURE.guided()(r.z[i : i + 1], r.phi[i : i + 1], COND[i : i + 1], r.w[i : i + 1])
            for i in range(5)
        ]
    )
    torch.testing.assert_close(r.v_target[:5], v, rtol=0, atol=1e-5)
    assert 0.5 <= float(r.w.min()) < 0.51
    assert 2.99 < float(r.w.max()) <= 3.0


def test_one_fixed_w() -> None:
    r = GuidanceDistillation(MIXTURE.guided(), w_range=(2.0, 2.0))(
        X[:9], COND[:9], torch.Generator()
    )
    assert r.w.tolist() == [2.0] * 9


@pytest.mark.parametrize("w", [(4.0, 0.0), (0.0, math.inf), (math.nan, 1.0)])
def test_a_range_that_is_none(w: tuple[float, float]) -> None:
    with pytest.raises(RangeError, match="w_range = "):
        GuidanceDistillation(MIXTURE.guided(), w_range=w)


def test_the_papers_chain() -> None:
    plan = chain(16, stage_one=100, updates=10)
    assert [(s.name, s.parent, s.steps, s.substeps) for s in plan] == [
        ("stage-one", "teacher", None, 2),
        ("student-16", "stage-one", 16, 2),
        ("student-8", "student-16", 8, 2),
        ("student-4", "student-8", 4, 2),
        ("student-2", "student-4", 2, 2),
        ("student-1", "student-2", 1, 2),
    ]


def test_straight_from_stage_one_and_without_it() -> None:
    plan = direct(4, stage_one=100, updates=10, substeps=8)
    assert [(s.name, s.substeps) for s in plan] == [("stage-one", 2), ("student-4", 8)]
    (only,) = direct(4, stage_one=None, updates=10, substeps=8)
    assert only.parent == TEACHER
    assert only.cost(4).teacher == 10 * 4 * 8 * 2
    (only,) = direct(4, updates=10)
    assert (only.parent, only.substeps, only.order) == (TEACHER, 4, 2)
    assert [s.order for s in chain(8, 4, stage_one=None, updates=1, order=2)] == [2, 1]


@pytest.mark.parametrize(
    "stage",
    [
        Stage("stage-one", TEACHER, updates=3),
        Stage("student-4", TEACHER, updates=3, steps=4, substeps=5),
        Stage("student-4", TEACHER, updates=3, steps=4, substeps=3, order=2),
        Stage("student-4", "stage-one", updates=3, steps=4, substeps=2, stride=2),
    ],
)
def test_the_cost_said_before_is_the_cost_counted_after(stage: Stage) -> None:
    class OnePass:
        passes = 1

        def __call__(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
            return torch.zeros_like(z)

    teacher = Counting(MIXTURE.guided() if stage.parent == TEACHER else OnePass())
    problem = stage.problem(teacher, (0.0, 4.0))
    assert isinstance(problem, GuidanceDistillation if stage.steps is None else StepDistillation)
    for u in range(stage.updates):
        problem(X[:8], COND[:8], torch.Generator().manual_seed(u))
    cost = stage.cost(8)
    assert teacher.evaluations == cost.teacher
    assert cost.student == stage.updates * 8
    assert cost.evaluations == cost.teacher + 3 * cost.student


def test_a_plan_adds_up() -> None:
    plan = chain(4, stage_one=10, updates=5)
    # stage one: 10 x 2 x (2 + 3); three students: 5 x 2 x (2 + 3)
    assert plan.cost(2).evaluations == 100 + 3 * 50


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ((Stage("a", TEACHER, updates=1), Stage("a", TEACHER, updates=1)), "two stages"),
        ((Stage("a", "b", updates=1),), "not made before"),
    ],
)
def test_a_plan_that_cannot_be_followed(stages: tuple[Stage, ...], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Plan(stages)


FOUR = Stage("student-4", TEACHER, updates=1, steps=4)
ENCODER = Stage("encoder-4", TEACHER, updates=1, steps=4, direction="encode")
PAIR = Stage("pair-4", TEACHER, updates=1, steps=4, pair=True)


@pytest.mark.parametrize(
    ("parent", "settings", "says"),
    [
        (ENCODER, {"steps": 2}, "4 of the sampler 'encode', got .* direction = 'decode'"),
        (FOUR, {"steps": 2, "direction": "encode"}, "4 of the sampler 'deterministic'"),
        (FOUR, {"steps": 3}, "'child': the sub-steps of a student must be steps"),
        (FOUR, {"steps": 4}, "or steps=2 with substeps=2"),
        (FOUR, {"steps": 8}, "sub-steps of a student must be steps"),
        (FOUR, {"steps": 2, "substeps": 4}, "sub-steps of a student must be steps"),
        (FOUR, {"steps": 2, "order": 2}, "order must be 1 .* made for a number of steps"),
        (FOUR, {"steps": None}, "must take any number of steps, got one made for 4"),
        (PAIR, {"steps": 2}, "a pair starts from the teacher or a pair"),
        (FOUR, {"steps": 2, "pair": True}, "a pair starts from the teacher or a pair"),
    ],
)
def test_a_parent_is_not_asked_for_what_it_was_not_trained_for(
    parent: Stage, settings: dict[str, object], says: str
) -> None:
    with pytest.raises(RecipeError, match=says):
        Plan((parent, Stage("child", parent.name, updates=1, **settings)))  # type: ignore[arg-type]


def test_parents_that_fit() -> None:
    for parent, settings in (
        (FOUR, {"steps": 2}),
        (FOUR, {"steps": 1, "substeps": 4}),
        (FOUR, {"steps": 2, "stride": 2}),
        (ENCODER, {"steps": 2, "direction": "encode"}),
        (PAIR, {"steps": 2, "pair": True}),
        (Stage(STAGE_ONE, TEACHER, updates=1), {"steps": 3, "substeps": 5, "order": 2}),
    ):
        Plan((parent, Stage("child", parent.name, updates=1, **settings)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"substeps": 9}, "substeps must be left out of guidance-distillation, the stage without"),
        ({"order": 2, "stride": 2, "direction": "encode"}, "direction, order, stride must be left"),
        ({"pair": True}, "pair must be left out"),
        ({"steps": 4, "kind": "guidance-distillation"}, "steps must be left out of guidance"),
        ({"kind": "step-distillation"}, "step distillation needs steps"),
        ({"kind": "halving"}, "kind must be one of pretraining, guidance-distillation, step-dis"),
        ({"steps": 4, "stride": 2, "direction": "encode"}, "got 'encode' with stride 2"),
        ({"steps": 4, "order": 2, "direction": "encode"}, "order must be 1 for an encoder"),
        ({"steps": 4, "stride": 3}, "stride must be 1 or 2, got 3"),
        ({"steps": 0}, "steps must be greater than or equal to 1, got 0"),
        ({"steps": 10**30}, "steps must be less than or equal to 100000, got 1000000"),
        ({"steps": 4, "substeps": 10**9}, "substeps must be less than or equal to"),
        ({"steps": 10**5, "substeps": 10**5}, "make at most 1000000"),
        ({"steps": 4, "substeps": 0}, "substeps must be greater than or equal to 1"),
        ({"steps": 4, "strid": 2}, "strid is not permitted"),
        ({"updates": 0}, "updates must be greater than or equal to 1"),
        ({"updates": 10**30}, "updates must be less than or equal to 1000000000"),
    ],
)
def test_a_stage_that_makes_no_sense(settings: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Stage(**{"name": "a", "parent": TEACHER, "updates": 1, **settings})  # type: ignore[arg-type]


class OfZeroToFour(Gaussian):
    traits = Traits((3,), (0.0, 4.0))


@pytest.mark.parametrize(
    "problem",
    [
        GuidanceDistillation,
        SampleDistillation,
        DistributionMatching,
        ConsistencyDistillation,
        partial(SelfConsistency, order=1),
        AnyStepDistillation,
        partial(StepDistillation, steps=4),
    ],
)
def test_a_stage_has_no_wider_range_of_w_than_its_teacher(problem: Callable[..., object]) -> None:
    problem(OfZeroToFour(), w_range=(1.0, 4.0))
    with pytest.raises(RangeError, match="is wider than the teacher's"):
        problem(OfZeroToFour(), w_range=(0.0, 5.0))


@pytest.mark.parametrize(("first", "last"), [(4, 0), (10**30, 1), (0, 0)])
def test_a_chain_of_numbers_that_are_none(first: int, last: int) -> None:
    with pytest.raises(RecipeError, match=r"does not halve|steps must be"):
        chain(first, last, stage_one=None, updates=1)


@pytest.mark.parametrize(("first", "last"), [(12, 1), (4, 8), (6, 4)])
def test_a_chain_that_does_not_halve(first: int, last: int) -> None:
    with pytest.raises(RecipeError, match="halve"):
        chain(first, last, stage_one=1, updates=1)


def test_a_pair_learns_both_passes_of_its_parent() -> None:
    stage = Stage("pair-4", TEACHER, updates=100, steps=4, substeps=2, pair=True)
    problem = stage.problem(MIXTURE, (0.0, 4.0), MIXTURE.null_cond)
    assert isinstance(problem, StepDistillation)
    check_stage(problem, X[:8], COND[:8])
    r = problem(X, COND, torch.Generator().manual_seed(0))
    assert isinstance(r.cond, Tensor)
    dropped = r.cond == 3
    assert torch.equal(r.cond[~dropped], COND[~dropped])
    assert float(dropped.float().mean()) == pytest.approx(0.5, abs=0.04)
    assert not r.w.any()
    # A parent of one pass: half of what the guided pair costs.
    assert (
        stage.cost(8).teacher * 2
        == Stage("student-4", TEACHER, updates=100, steps=4, substeps=2).cost(8).teacher
    )
    with pytest.raises(RangeError, match=r"dropout = 2"):
        StepDistillation(MIXTURE, 4, w_range=(0, 0), null_cond=MIXTURE.null_cond, dropout=2)


def test_a_plan_may_start_at_a_stage_one_from_elsewhere() -> None:
    plan = Plan((Stage("encoder-8", STAGE_ONE, updates=10, steps=8, direction="encode"),))
    assert plan.cost(1).teacher == 20  # one pass, not two


def test_a_new_kind_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    new = Kind(
        "rectification",
        lambda stage, teacher, w, _: StepDistillation(teacher, stage.steps or 1, w_range=w),
        lambda stage: f"straight-{stage.steps}",
        settings=frozenset({"steps"}),
        calls=lambda _, batch: 2 * batch,
    )
    monkeypatch.setitem(KINDS, new.name, new)
    stage = Stage(None, TEACHER, kind=new.name, steps=2, updates=3)
    assert (stage.name, stage.sampler, stage.cost(8).teacher) == ("straight-2", None, 3 * 8 * 2 * 2)
    assert Plan((stage, Stage(None, stage.name, updates=1, steps=1))).stages[1].name == "student-1"
    assert stage.identity()["kind"] == new.name
    assert Stage.model_validate_json(stage.model_dump_json()) == stage
    with pytest.raises(RecipeError, match="stride must be left out of rectification"):
        Stage(None, TEACHER, kind=new.name, steps=2, stride=2)


def test_pretraining_is_a_stage_too() -> None:
    stage = Stage("teacher", "data", kind="pretraining", dropout=0.25)
    problem = stage.problem(MIXTURE, (0.0, 4.0), MIXTURE.null_cond)
    assert problem == Pretrain(MIXTURE.null_cond, dropout=0.25)
    assert stage.sampler is None
    with pytest.raises(RangeError, match="must be given a null condition"):
        stage.problem(MIXTURE, (0.0, 4.0))
    with pytest.raises(RecipeError, match="dropout must be left out of step-distillation"):
        Stage(None, TEACHER, steps=4, dropout=0.1)


def test_the_public_checks_import_nothing_of_what_they_check() -> None:
    code = (
        "import fewstep.testing, sys; sys.exit(any(m in sys.modules for m in ("
        "'pydantic', 'fewstep.distill.steps', 'fewstep.distill.guidance')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
