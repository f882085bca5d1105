"""States from the teacher's own trajectories: where they lie, what they cost, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.angle import HALF_PI, renoise, rotate
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Traits
from fewstep.core.grid import cosine
from fewstep.distill.guidance import GuidanceDistillation
from fewstep.distill.plan import KINDS, TEACHER, Stage
from fewstep.distill.problem import Regression
from fewstep.distill.steps import StepDistillation
from fewstep.distill.trajectory import visits
from fewstep.errors import RangeError
from fewstep.testing import Counting, Gaussian, Mixture, check_stage

G = torch.Generator().manual_seed(0)
MIXTURE = Mixture(torch.randn(3, 2, 2, generator=G, dtype=torch.float64), 0.3)
TEACHER_PAIR = MIXTURE.guided()
COND = torch.arange(24) % 3
X = MIXTURE.draw(COND, G)


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ask(z: Tensor, phi: float, cond: Cond, w: Tensor) -> Tensor:
    return TEACHER_PAIR(z, torch.full((len(z),), phi, dtype=torch.float64), cond, w)


def walked(z: Tensor, points: tuple[float, ...], cond: Cond, w: Tensor) -> Tensor:
    for phi, to in zip(points, points[1:], strict=False):
        z = rotate(z, ask(z, phi, cond, w), phi - to)
    return z


def parts(r: Regression, counts: list[int]) -> list[Regression]:
    out, first = [], 0
    for n in counts:
        rows = slice(first, first + n)
        cond = conds.take(r.cond, rows)
        out.append(Regression(r.z[rows], r.phi[rows], cond, r.w[rows], r.v_target[rows]))
        first += n
    return out


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize(("batch", "counts"), [(24, [6, 6, 6, 6]), (22, [6, 6, 5, 5])])
@pytest.mark.parametrize("substeps", [1, 3])
def test_states_of_stage_two_lie_on_the_teachers_own_trajectory(
    direction: str, batch: int, counts: list[int], substeps: int
) -> None:
    stage = StepDistillation(
        TEACHER_PAIR, 4, substeps, direction=direction, w_range=(0.0, 4.0), states="trajectory"
    )  # type: ignore[arg-type]
    r = stage(X[:batch], COND[:batch], seeded())
    assert stage.split is not None
    met = parts(r, counts)
    for move, here, after in zip(stage.moves, met, [*met[1:], None], strict=True):
        torch.testing.assert_close(here.phi, torch.full_like(here.phi, move.phi))
        assert torch.equal(here.w, met[0].w[: len(here.w)])
        assert isinstance(here.cond, Tensor)
        assert torch.equal(here.cond, COND[: len(here.cond)])
        if after is not None:
            points = stage.split(move.phi, move.to, substeps)
            reached = walked(here.z, points, here.cond, here.w)
            torch.testing.assert_close(after.z, reached[: len(after.z)], rtol=0, atol=1e-12)
    if direction == "encode":
        assert torch.equal(met[0].z, X[:6])


def test_the_targets_of_stage_two_are_those_of_noised_data_at_the_same_states() -> None:
    stage = StepDistillation(TEACHER_PAIR, 4, 3, w_range=(0.0, 4.0), states="trajectory")
    r = stage(X, COND, seeded())
    index = torch.arange(4).repeat_interleave(6)
    noised = replace(stage, states="noised")
    torch.testing.assert_close(
        r.v_target, noised.target(r.z, index, r.cond, r.w), rtol=0, atol=1e-13
    )


def test_a_gaussians_trajectory_ends_where_its_closed_form_says() -> None:
    teacher = Gaussian(0.3, 0.4)
    stage = StepDistillation(teacher, 8, 2, w_range=(0.0, 1.0), states="trajectory")
    x = torch.zeros(80, 3, dtype=torch.float64)
    r = stage(x, torch.zeros(80), seeded())
    last = stage.moves[-1]
    end = rotate(r.z[-10:], r.v_target[-10:], last.phi - last.to)
    torch.testing.assert_close(end, 0.3 + teacher.factor(cosine(16)) * r.z[:10])


def test_a_stochastic_student_meets_the_states_of_its_sampler() -> None:
    stage = StepDistillation(TEACHER_PAIR, 4, 4, stride=2, w_range=(0.0, 4.0), states="trajectory")
    r = stage(X, COND, seeded())
    met, draws = parts(r, [6] * 4), seeded()
    torch.rand(6, generator=draws, dtype=torch.float64)  # w
    torch.testing.assert_close(met[0].z, torch.randn(6, 2, generator=draws, dtype=torch.float64))
    for i, (move, here, after) in enumerate(zip(stage.moves, met, met[1:], strict=False)):
        reached = rotate(here.z, here.v_target, move.phi - move.to)
        if i < 3:
            eps = torch.randn(6, 2, generator=draws, dtype=torch.float64)
            reached = renoise(reached, eps, move.to, stage.moves[i + 1].phi)
        torch.testing.assert_close(after.z, reached, rtol=0, atol=1e-13)


STAGES = [(n, k, s, "decode") for n in (1, 3, 8) for k in (1, 2) for s in (1, 2)] + [
    (n, 2, 1, "encode") for n in (1, 3, 8)
]


@pytest.mark.parametrize("settings", STAGES, ids=lambda t: "-".join(map(str, t)))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_stage_passes_the_public_check(
    settings: tuple[int, int, int, str], dtype: torch.dtype
) -> None:
    n, k, stride, direction = settings
    stage = StepDistillation(
        TEACHER_PAIR, n, k, stride, direction, w_range=(0.0, 4.0), states="trajectory"
    )  # type: ignore[arg-type]
    check_stage(stage, X.to(dtype), COND)


def test_stage_one_passes_the_public_check() -> None:
    for dtype in (torch.float64, torch.float32):
        check_stage(GuidanceDistillation(TEACHER_PAIR, states="trajectory"), X.to(dtype), COND)


def test_states_of_stage_one_lie_on_the_teachers_own_trajectory() -> None:
    r = GuidanceDistillation(TEACHER_PAIR, w_range=(0.0, 4.0), states="trajectory", walk=5)(
        X, COND, seeded()
    )
    met = parts(r, [5, 5, 5, 5, 4])
    assert met[0].phi.tolist() == [HALF_PI] * 5
    for here, after in zip(met, met[1:], strict=False):
        n = len(after.z)
        assert torch.equal(after.w, here.w[:n])
        reached = rotate(here.z, here.v_target, here.phi - torch.cat([after.phi, here.phi[n:]]))
        torch.testing.assert_close(after.z, reached[:n], rtol=0, atol=1e-13)
    asked = TEACHER_PAIR(r.z, r.phi, r.cond, r.w)
    torch.testing.assert_close(r.v_target, asked, rtol=0, atol=1e-13)


@pytest.mark.parametrize("phi", [None, (0.2, HALF_PI)])
def test_the_angles_of_stage_one_cover_the_range(phi: tuple[float, float] | None) -> None:
    low, high = phi or (0.0, HALF_PI)
    x = torch.zeros(8000, 1)
    r = GuidanceDistillation(Gaussian(), phi=phi, states="trajectory", walk=8)(
        x, torch.zeros(8000), seeded()
    )
    angles = r.phi.reshape(8, 1000)
    assert bool((angles[:-1] > angles[1:]).all())
    drawn = (angles[1:].flatten().sort().values - low) / (high - low)
    uniform = torch.linspace(0, 1, len(drawn))
    assert float((drawn - uniform).abs().max()) < 0.02
    assert float(drawn[0]) >= 0


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": None, "parent": TEACHER},
        {"steps": 4, "substeps": 3, "parent": TEACHER},
        {"steps": 4, "substeps": 2, "parent": "stage-one"},
        {"steps": 6, "substeps": 2, "stride": 2, "parent": "stage-one"},
        {"steps": 5, "substeps": 1, "direction": "encode", "parent": "stage-one"},
    ],
)
def test_trajectories_cost_what_noised_data_cost(settings: dict[str, object]) -> None:
    class OnePass:
        passes = 1

        def __call__(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
            return torch.zeros_like(z)

    spent = []
    for states in ("noised", "trajectory"):
        stage = Stage(name="a", updates=2, states=states, **settings)  # type: ignore[arg-type]
        teacher = Counting(TEACHER_PAIR if stage.parent == TEACHER else OnePass())
        problem = stage.problem(teacher, (0.0, 4.0))
        rows = sum(len(problem(X[:23], COND[:23], seeded(u)).z) for u in range(2))
        assert rows == 2 * 23
        assert teacher.evaluations == stage.cost(23).teacher
        spent.append(stage.cost(23))
    assert spent[0] == spent[1]


@pytest.mark.parametrize("stride", [1, 2])
def test_decoding_needs_no_images(stride: int) -> None:
    """Prompts alone will do: what the images hold is not looked at."""
    none = torch.full_like(X, math.nan)
    for problem in (
        StepDistillation(TEACHER_PAIR, 4, stride=stride, w_range=(0, 4), states="trajectory"),
        GuidanceDistillation(TEACHER_PAIR, states="trajectory"),
    ):
        a, b = problem(none, COND, seeded()), problem(X, COND, seeded())
        assert torch.equal(a.z, b.z)
        assert torch.equal(a.v_target, b.v_target)


def test_a_pair_is_walked_with_its_label_or_without() -> None:
    stage = Stage("pair-4", TEACHER, updates=1, steps=4, pair=True, states="trajectory")
    problem = stage.problem(MIXTURE, (0.0, 4.0), MIXTURE.null_cond)
    x, cond = X.repeat(100, 1), COND.repeat(100)
    r = problem(x, cond, seeded())
    assert isinstance(r.cond, Tensor)
    by_trajectory = r.cond.reshape(4, -1)
    assert bool((by_trajectory == by_trajectory[0]).all())
    assert float((r.cond == 3).double().mean()) == pytest.approx(0.5, abs=0.08)


def test_conditions_of_several_tensors_are_carried_along() -> None:
    class ByText:
        passes = 1

        def __call__(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
            assert isinstance(cond, dict)
            assert len(cond["text"]) == len(z)
            return cond["text"].to(z)[:, :2]

    cond: Cond = {"text": torch.randn(24, 4), "size": torch.arange(24)}
    r = StepDistillation(ByText(), 4, w_range=(0, 1), states="trajectory")(X, cond, seeded())
    assert isinstance(r.cond, dict)
    assert r.cond["size"].tolist() == list(range(6)) * 4


def test_visits() -> None:
    assert visits(128, 4) == [32] * 4
    assert visits(10, 4) == [3, 3, 2, 2]
    assert visits(4, 4) == [1] * 4


class Late(Gaussian):
    traits = Traits(phi_range=(0.1, 1.5))


@pytest.mark.parametrize(("settings", "least"), [({}, 8), ({"steps": 16, "stride": 2}, 16)])
def test_a_part_must_hold_a_trajectory(settings: dict[str, Any], least: int) -> None:
    """It is known before the first stage is trained, for any number of processes."""
    stage = Stage(None, "teacher", states="trajectory", **settings)
    check = KINDS[stage.kind].check_part
    check(stage, least)
    with pytest.raises(RangeError, match=f"a batch of {least - 1} cannot hold a trajectory"):
        check(stage, least - 1)
    check(stage.model_copy(update={"states": "noised"}), 1)


def test_what_cannot_be_walked_is_said() -> None:
    with pytest.raises(RangeError, match="cannot hold a trajectory of 32 states"):
        StepDistillation(TEACHER_PAIR, 32, w_range=(0, 4), states="trajectory")(X, COND, seeded())
    with pytest.raises(RangeError, match="'noised' or 'trajectory'"):
        StepDistillation(TEACHER_PAIR, 4, w_range=(0, 4), states="walked")  # type: ignore[arg-type]
    with pytest.raises(RangeError, match="'encode' with stride 2"):
        StepDistillation(
            TEACHER_PAIR, 4, stride=2, direction="encode", w_range=(0, 4), states="trajectory"
        )
    with pytest.raises(RangeError, match="walk = 1"):
        GuidanceDistillation(TEACHER_PAIR, states="trajectory", walk=1)
    with pytest.raises(RangeError, match=r"phi ends at 0\.2 and"):
        GuidanceDistillation(TEACHER_PAIR, phi=(0.1, 0.2), states="trajectory")
    assert GuidanceDistillation(Late(), states="trajectory").phi == (0.1, 1.5)


def test_noised_states_are_not_named_in_what_a_stage_is_known_by() -> None:
    """A run that was begun before there were others goes on; one with others is another."""
    noised = Stage("student-4", "stage-one", updates=10, steps=4)
    assert "states" not in noised.identity()
    walked_on = noised.model_copy(update={"states": "trajectory"})
    assert walked_on.identity() == noised.identity() | {"states": "trajectory"}
