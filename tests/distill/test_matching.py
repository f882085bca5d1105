"""Distribution matching, and the score of the teacher's samples that it is measured by."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.angle import HALF_PI, add_noise, rotate, x_from_v
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser
from fewstep.core.sample import sample
from fewstep.core.seed import generator
from fewstep.distill.draw import gaussian, uniform
from fewstep.distill.matching import (
    FAKES,
    MARGIN,
    DistributionMatching,
    StudentAndScore,
    students_in,
)
from fewstep.distill.plan import KINDS, Plan, Stage
from fewstep.distill.problem import loss
from fewstep.distill.samples import STATES, STEPS, SampleDistillation
from fewstep.errors import RangeError, RecipeError
from fewstep.metrics import paired_rms
from fewstep.testing import Counting, Gaussian, GaussianJump, Mixture, check_stage

COND = torch.zeros(256, dtype=torch.long)
X = torch.zeros(256, 4)
STD = 0.5


class AtW:
    """The exact denoiser of data N(slope w, std^2): another distribution at every w."""

    passes = 1

    def __init__(self, slope: float | Tensor = 1.0, std: float | Tensor = STD) -> None:
        self.slope, self.std = slope, std

    def __call__(self, z: Tensor, phi: Tensor, _: Cond, w: Tensor) -> Tensor:
        a, g = phi.cos()[:, None], phi.sin()[:, None]
        turn = a * g * (1 - self.std**2) / (a * a * self.std**2 + g * g)
        mean = self.slope * w[:, None]
        return turn * (z - a * mean) - g * mean


class Line(nn.Module):
    """A one-step student that draws x = slope w + std u from noise u."""

    passes = 1

    def __init__(self, slope: float, std: float) -> None:
        super().__init__()
        self.slope, self.std = (nn.Parameter(torch.tensor(p)) for p in (slope, std))

    def forward(self, z: Tensor, _phi: Tensor, _cond: Cond, w: Tensor) -> Tensor:
        return -(self.slope * w[:, None] + self.std * z)


class BestScore(nn.Module):
    """The fake score at its optimum: the exact denoiser of what a `Line` draws now."""

    passes = 1

    def __init__(self, line: Line) -> None:
        super().__init__()
        self.line = [line]  # not a part of the module

    def forward(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        of = self.line[0]
        return AtW(of.slope, of.std)(z, phi, cond, w)


def matching(slope: float, std: float, teacher: Denoiser | None = None) -> DistributionMatching:
    line = Line(slope, std)
    networks = StudentAndScore(line, BestScore(line))
    return DistributionMatching(teacher or AtW(), networks, (0.5, 3.0))


def test_it_is_a_stage() -> None:
    check_stage(matching(0.0, 0.7), X[:16], COND[:16])


def test_where_both_scores_agree_the_target_is_the_sample_itself() -> None:
    problem = matching(1.0, STD)
    r = problem(X, COND, generator("cpu", 0))
    n = students_in(len(X))
    assert torch.equal(r.v_target[:n], problem.networks(r.z, r.phi, r.cond, r.w)[:n])  # type: ignore[misc]


def test_the_move_has_its_closed_form() -> None:
    """Of two Gaussians of one std: (m - m_fake) sin^2 / (cos^2 s^2 + sin^2), for every state."""
    problem, u = matching(0.2, STD), gaussian(X, generator("cpu", 1))
    w = uniform((0.5, 3.0), X, generator("cpu", 2))
    made = 0.2 * w[:, None] + STD * u
    target = problem.target(-made, made, COND, w, generator("cpu", 3))
    draws = generator("cpu", 3)
    phi = uniform((MARGIN * HALF_PI, (1 - MARGIN) * HALF_PI), X, draws)
    z = add_noise(made, gaussian(X, draws), phi)
    spread = phi.cos() ** 2 * STD**2 + phi.sin() ** 2
    real = w[:, None] + (phi.cos() * STD**2 / spread)[:, None] * (
        z - phi.cos()[:, None] * w[:, None]
    )
    c = 1 / (made - real).abs().mean(dim=1)
    moved = c * 0.8 * w * phi.sin() ** 2 / spread
    torch.testing.assert_close(-target - made, moved[:, None].expand_as(made), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("slope", "std"), [(0.3, 0.2), (2.0, 1.0)])
def test_the_student_comes_to_draw_as_the_teacher_at_every_w(slope: float, std: float) -> None:
    problem = matching(slope, std)
    line: Any = problem.networks.student  # type: ignore[union-attr]
    optimizer = torch.optim.Adam(line.parameters(), lr=0.02)
    for update in range(400):
        r = problem(X, COND, generator("cpu", 0, update))
        n = students_in(len(X))
        v = line(r.z[:n], r.phi[:n], r.cond, r.w[:n])
        for group in optimizer.param_groups:
            group["lr"] = 0.03 * (1 - update / 400)
        optimizer.zero_grad()
        loss(v, r.v_target[:n], r.phi[:n]).backward()
        optimizer.step()
    assert float(line.slope.detach()) == pytest.approx(1.0, abs=0.05)
    assert float(line.std.detach()) == pytest.approx(STD, abs=0.05)


def test_the_fake_score_is_trained_on_the_students_own_samples() -> None:
    problem, n = matching(0.2, 0.7), students_in(len(X))
    r = problem(X, COND, generator("cpu", 0))
    made = x_from_v(r.z[n:], r.v_target[n:], r.phi[n:])
    own = rotate(r.z[:n], -(0.2 * r.w[:n, None] + 0.7 * r.z[:n]), HALF_PI)
    torch.testing.assert_close(made, own.repeat(FAKES, 1), rtol=0, atol=1e-5)
    assert torch.equal(r.w[n:], r.w[:n].repeat(FAKES))
    assert float(r.phi[n:].mean()) == pytest.approx(HALF_PI / 2, abs=0.1)


def test_the_module_asks_each_network_for_its_own_examples() -> None:
    line = Line(1.0, 1.0)
    fake = Line(-1.0, 2.0)
    z, w = torch.ones(8, 4), torch.ones(8)
    v = StudentAndScore(line, fake)(z, w, COND[:8], w)
    assert v[:2].eq(-2.0).all()
    assert v[2:].eq(-1.0).all()


def test_a_batch_of_one_is_refused() -> None:
    with pytest.raises(RangeError, match="a batch of at least 2"):
        matching(1.0, 1.0)(X[:1], COND[:1], generator("cpu", 0))


def test_answering_leaves_dropout_as_it_was() -> None:
    networks = StudentAndScore(nn.Dropout(0.5), nn.Dropout(0.5))
    for training in (True, False):
        networks.train(training)
        with networks.answering():
            assert not networks.student.training
            assert not torch.is_grad_enabled()
        assert networks.student.training is training


MIXTURE = Mixture(torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(3)), 0.2)


def test_the_score_of_samples_is_asked_for_the_teachers_own() -> None:
    teacher, cond = Counting(MIXTURE.guided()), torch.arange(256) % 3
    problem = SampleDistillation(teacher, (0.0, 3.0))
    x = torch.zeros(256, 2)
    check_stage(problem, x[:16], cond[:16])
    teacher.evaluations = 0
    r = problem(x, cond, generator("cpu", 0))
    few = len(x) // STATES
    assert teacher.evaluations == 2 * STEPS * few
    drawn = problem.draw(gaussian(x[:few], generator("cpu", 0)), cond[:few], r.w[:few])
    torch.testing.assert_close(
        x_from_v(r.z, r.v_target, r.phi), drawn.repeat(STATES, 1), rtol=0, atol=1e-4
    )
    many = sample(
        MIXTURE.guided(),
        cond[:few],
        w=r.w[:few],
        steps=512,
        z=gaussian(x[:few], generator("cpu", 0)),
    )
    assert paired_rms(drawn, many) < 0.1 * float(drawn.std())


def test_its_samples_have_the_distribution_of_the_data_without_guidance() -> None:
    drawn = SampleDistillation(Gaussian(0.5, 0.4), (0.0, 0.0)).draw(
        gaussian(torch.zeros(4000, 1), generator("cpu", 0)),
        COND.repeat(16)[:4000],
        torch.zeros(4000),
    )
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(drawn.std()) == pytest.approx(0.4, rel=0.1)


def plan(**more: Any) -> Plan:
    matched = {"parent": "student-1", "kind": "distribution-matching", "steps": 1, **more}
    return Plan((
        Stage(None, "teacher", kind="sample-distillation", updates=9),
        Stage(None, "teacher", steps=2, updates=9),
        Stage(None, "student-2", steps=1, substeps=2, updates=9),
        Stage(None, updates=9, **matched),
    ))  # fmt: skip


def test_the_plan_and_its_cost() -> None:
    stages = {stage.name: stage for stage in plan(real="sampled")}
    assert list(stages) == ["sampled", "student-2", "student-1", "matched-1"]
    assert stages["sampled"].cost(64).teacher == 9 * 64 * 2 * STEPS // STATES
    # One call of student, fake score and real score for each example of the student.
    assert stages["matched-1"].cost(64).teacher == 9 * 64 // 4 * 3
    assert plan().stages[-1].cost(64).teacher == 9 * 64 // 4 * 4  # guided, by two passes
    assert stages["matched-1"].cost(64).student == 9 * 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"real": "unknown"}, "needs 'unknown', which is not made before it"),
        ({"real": "student-2"}, "must take any number of steps"),
        ({"parent": "student-2"}, "must start from one of as many"),
        ({"steps": 2}, "needs steps: 1"),
        ({"steps": None}, "needs steps: 1"),
        ({"kind": None, "real": "sampled"}, "real must be left out of step-distillation"),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        plan(**settings)


def test_angles_of_a_clock_that_ends_before_pure_noise() -> None:
    """The student's step then ends at the grid's last angle, as its sampler's does."""
    line = Line(0.0, 0.7)
    grid = (1.5, 0.03)
    problem = DistributionMatching(AtW(), StudentAndScore(line, BestScore(line)), (0.0, 1.0), grid)
    r = problem(X, COND, generator("cpu", 0))
    n = students_in(len(X))
    made = rotate(r.z[:n], -0.7 * r.z[:n], grid[0] - grid[1])
    seen = x_from_v(r.z[n:], r.v_target[n:], r.phi[n:])
    torch.testing.assert_close(seen, made.repeat(FAKES, 1), rtol=0, atol=1e-5)
    assert math.isclose(float(r.phi[0]), 1.5, abs_tol=1e-6)


def test_a_model_that_jumps_is_no_score() -> None:
    with pytest.raises(RangeError, match="velocity of its trajectory"):
        DistributionMatching(GaussianJump(mean=0.5, std=0.4))


def test_a_part_of_one_cannot_be_divided_between_student_and_score() -> None:
    with pytest.raises(RangeError, match="a batch of at least 2"):
        KINDS["distribution-matching"].check_part(Stage("m", "teacher", steps=1), 1)
