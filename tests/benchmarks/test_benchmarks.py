"""What the benchmarks measure with, and that each listed one is there; nothing here is timed."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.angle import rotate
from fewstep.core.denoiser import Guided
from fewstep.core.seed import generator
from fewstep.distill.pretrain import Pretrain
from fewstep.models.clocks.native import TIMESTEPS, timestep_from_phi
from fewstep.train import TrainConfig

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import measure
import networks
import rivals
import training_step
from measure import Peak, Result, Setting, Table, Times

LISTED = importlib.import_module("run").BENCHMARKS
SETTING = Setting()
MIB = 2**20


@pytest.mark.parametrize("name", LISTED)
def test_every_benchmark_that_is_listed_can_run(name: str) -> None:
    assert callable(importlib.import_module(name).run)


def test_the_median_and_the_quartiles_are_those_of_the_ratios() -> None:
    found = measure.paired([2.0, 6.0, 3.0, 8.0, 5.0], [2.0, 2.0, 1.5, 2.0, 1.0])
    assert found == {"ratio": 3.0, "low": 2.0, "high": 4.0, "rounds": 5}


def test_sides_take_turns_and_warm_rounds_are_not_counted() -> None:
    order: list[str] = []
    sides = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = measure.alternate(SETTING, sides, 3, warm=1, times=2)
    assert "".join(order) == "bbaa" + "aabb" + "bbaa" + "aabb"
    assert {k: len(v) for k, v in times.wall.items()} == {"a": 3, "b": 3}


def test_a_row_says_whether_its_target_is_met() -> None:
    times = Times({"a": [1.2, 1.2], "b": [1.0, 1.0]}, {"a": [1.0, 1.0], "b": [1.0, 1.0]})
    assert times.ratio("x", "a", "b", 1.15)["met"] is False
    assert times.ratio("x", "a", "b", 1.25)["met"] is True
    assert "met" not in times.ratio("x", "a", "b")
    assert times.ratio("x", "a", "b")["processor"] == 1.0


def test_memory_is_counted_while_it_is_held_and_no_longer() -> None:
    def both() -> Tensor:
        a = torch.ones(MIB // 4)
        b = torch.ones(MIB // 4)
        return (a[:10] + b[:10]).sum()

    def one_by_one() -> None:
        for _ in range(3):
            torch.ones(MIB // 4).mul_(2)

    assert 2 * MIB <= Peak(SETTING).of(both) < 2 * MIB + 1000
    assert MIB <= Peak(SETTING).of(one_by_one) < MIB + 1000


def test_memory_that_autograd_keeps_is_counted() -> None:
    w = torch.ones(MIB // 4, requires_grad=True)

    def kept() -> None:
        x = w.detach()
        for _ in range(4):
            x = (x * w).sin()
        x.sum().backward()

    # Each product is kept for the derivative of its sine, each sine for that of the next product.
    assert Peak(SETTING).of(kept) >= 7 * MIB


def test_evaluations_are_counted_in_batches_and_a_gradient_makes_three() -> None:
    net = nn.Linear(2, 2)
    with measure.evaluations([net], 4) as count:
        with torch.no_grad():
            net(torch.ones(8, 2))
        assert count == [2.0]
        net(torch.ones(4, 2))
    net(torch.ones(4, 2))
    assert count == [5.0]


def test_a_result_is_written_with_where_it_comes_from(tmp_path: Path) -> None:
    times = Times({"a": [2.0, 2.0], "b": [1.0, 1.0]}, {"a": [2.0, 2.0], "b": [1.0, 1.0]})
    result = Result("About.", [Table("Ratios", [times.ratio("this", "a", "b", 1.5)])])
    result.write("name", tmp_path, measure.environment(SETTING))
    report = json.loads((tmp_path / "name.json").read_text())
    assert report["tables"][0]["rows"][0]["ratio"] == 2.0
    assert {"device", "threads", "torch", "commit", "precision"} <= report["environment"].keys()
    text = (tmp_path / "name.md").read_text()
    assert "| this | 2.000 (2.000 to 2.000) | 2 |" in text
    assert "**no**" in text
    assert result.missed() == ["this"]


@pytest.fixture(scope="module")
def subject() -> networks.Subject:
    return networks.classes("digits", batch=4, channels=(8, 16))(SETTING)


def test_training_and_its_rivals_are_timed_equally_often(
    subject: networks.Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of the test's own: a batch takes 10 s, the rival 1 s, and nothing else counts."""
    seconds = [0.0]

    def load(update: int) -> tuple[Tensor, Tensor]:
        seconds.append(seconds[-1] + 10.0)
        return subject.x, subject.cond

    monkeypatch.setattr(Setting, "now", lambda _: (seconds[-1], seconds[-1]))
    problem, config = Pretrain(subject.null_cond), TrainConfig(updates=8, batch_size=4)
    calls: list[float] = []

    def rival() -> None:
        calls.append(seconds[-1])
        seconds.append(seconds[-1] + 1.0)

    times = measure.beside_training(
        SETTING, subject.fresh(), problem, load, config, tmp_path, {"rival": rival}
    )
    assert times.wall == times.cpu == {"fewstep": [10.0] * 5, "rival": [1.0] * 5}
    assert calls == [11.0 * update for update in range(8)]


@pytest.mark.parametrize("stage", training_step.STAGES)
def test_a_stage_costs_five_forwards_an_update(
    subject: networks.Subject, stage: str, tmp_path: Path
) -> None:
    evaluated, peak = rivals.once(SETTING, subject, stage, tmp_path)
    assert evaluated == 5.0
    assert peak > 0


@pytest.mark.parametrize(("name", "cost"), [("latent consistency", 6), ("textbook halving", 7)])
def test_a_rival_costs_what_its_step_is_made_of(
    subject: networks.Subject, name: str, cost: int
) -> None:
    rival = rivals.RIVALS[name](SETTING, subject)
    before = [p.detach().clone() for p in rival.parameters]
    nets = [n.network for n in (rival.student, rival.average, subject.teacher)]
    with measure.evaluations(nets, subject.batch) as count:
        rival.update()
    assert count == [float(cost)]
    assert any(not torch.equal(a, b) for a, b in zip(before, rival.parameters, strict=True))
    assert all(p.isfinite().all() for p in rival.parameters)


def test_the_textbook_takes_the_guided_steps_that_fewstep_takes(subject: networks.Subject) -> None:
    rival = rivals.Textbook(SETTING, subject)
    z = torch.randn(4, 1, 8, 8, generator=generator("cpu", 0))
    w, t = torch.tensor([0.0, 1.0, 2.0, 4.0]), torch.tensor([1023, 511, 255, 127])
    phi = (t + 1) * torch.pi / 2 / TIMESTEPS
    torch.testing.assert_close(timestep_from_phi(phi), t.float(), atol=1e-3, rtol=0)
    guided = Guided(subject.teacher, subject.null_cond)
    with torch.no_grad():
        expected = rotate(z, guided(z, phi, subject.cond, w), phi / 2)
        found = rival._half(z, t, (t + 1) // 2 - 1, w)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_latent_student_answers_like_its_teacher_at_first() -> None:
    latent = networks.latent(SETTING)
    z, w = latent.x[:2], torch.ones(2)
    phi, cond = torch.full((2,), 0.5), latent.cond[:2]
    with torch.no_grad():
        assert torch.equal(latent.teacher(z, phi, cond, w), latent.student(z, phi, cond, w))


def test_lora_is_measured_beside_full_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = importlib.import_module("lora")
    monkeypatch.setitem(lora.SIZES, "wide", ((32, 64), 1))
    memory, time = lora.compare(SETTING, "wide", tmp_path, rounds=2)
    full, adapter = memory
    assert adapter["trained numbers"] < full["trained numbers"] / 4
    assert adapter["peak MiB"] < full["peak MiB"]
    for row in memory:
        assert row["peak MiB"] / 2 < row["foreseen MiB"] < 2 * row["peak MiB"]
    assert time["rounds"] == 2
