"""What could stop a report is found before its training; defaults fit the clock of the models."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.models.pipelines import sd_folder
from tests.recipes.making import features_folder, image_folder, student, teacher
from torch import Tensor

from fewstep.distill.plan import TEACHER, Plan, Stage
from fewstep.errors import FewstepError, FolderError, RecipeError
from fewstep.folders import save_model
from fewstep.models import Model
from fewstep.models.clocks.flow import FlowClock
from fewstep.models.scheduler import read_clock
from fewstep.recipes.check import check_report, fit_steps, nearest_divisor
from fewstep.recipes.config import check_recipe
from fewstep.recipes.duration import Speed, speed_of
from fewstep.recipes.run import Run
from fewstep.recipes.schema import EvaluateConfig
from fewstep.recipes.study import run_study
from fewstep.recipes.wanted import evaluations_of


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("check")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_CACHE", str(path / "cache"))
        features_folder(path / "look", image_folder(path / "pets"))
    parent = teacher()
    save_model(parent, path / "teacher")
    student(parent, path / "student-4")
    sd_folder(path / "sd")
    return path


@pytest.fixture(autouse=True)
def _cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(home / "cache"))


def recipe(home: Path, **more: Any) -> Any:
    settings: dict[str, Any] = {
        "name": "tiny",
        "data": {"name": str(home / "pets"), "held_out": 0.0},
        "network": {"channels": [8], "groups": 4, "w_dim": 16},
        "teacher": {"updates": 1, "batch_size": 4},
        "distill": {"w": [0, 4], "batch_size": 4, "updates": 1,
                    "stages": [{"parent": "teacher", "steps": 4}]},
        "evaluate": {"w": [1, 1], "samples": 8, "reference_steps": 4, "teacher_steps": [2],
                     "stage_one_steps": [2], "batch_size": 8, "features": str(home / "look")},
    }  # fmt: skip
    for part, changes in more.items():
        settings[part] = {**settings.get(part, {}), **changes}
    return check_recipe(settings, "test")


def checked(home: Path, out: Path, teachers: tuple[str, ...] = (), **more: Any) -> Any:
    run = Run(recipe(home, **more), out, "cpu", progress=False)
    return check_report(run, [home / name for name in teachers])


def test_a_check_writes_nothing_and_keeps_what_fits(home: Path, tmp_path: Path) -> None:
    found = checked(home, tmp_path / "run")
    assert found.notes == ()
    assert found.settings.w == (1.0,)  # each cell once
    assert found.settings.stage_one_steps == (2,)
    assert not (tmp_path / "run").exists()


FROM_STAGE_ONE = {"stages": [{"parent": "stage-one", "steps": 4}]}


@pytest.mark.parametrize(
    ("more", "teachers", "error", "says"),
    [
        ({"evaluate": {"features": "nowhere"}}, (), FolderError, "evaluate.features.*not exist"),
        ({"evaluate": {"features": "{home}/teacher"}}, (), FolderError, "config.json is missing"),
        ({"evaluate": {"samples": 10**7}}, (), FewstepError, "evaluate.samples must fit"),
        ({"evaluate": {"solver_steps": [5000]}}, (), RecipeError, "evaluate.solver_steps"),
        ({"distill": FROM_STAGE_ONE}, (), FolderError, "student-4 starts from .* stage one"),
        ({"distill": FROM_STAGE_ONE}, ("teacher",), FolderError, "Add its folder with --teacher"),
        ({}, ("student-4",), FolderError, "a guided teacher"),
    ],
)
def test_what_stops_a_report_stops_it_first(
    more: dict[str, Any], teachers: tuple[str, ...], error: type[Exception], says: str,
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("fewstep.measure.room.free_memory", lambda: 10**9)
    monkeypatch.setattr("fewstep.measure.room.free_disk", lambda _: 10**10)
    features = more.get("evaluate", {}).get("features")
    if features is not None:
        more = {"evaluate": {"features": features.format(home=home)}}
    given = [home / name for name in teachers]
    with pytest.raises(error, match=says):
        run_study(recipe(home, **more), tmp_path / "run", "cpu", lambda _: None, False, given)
    assert not (tmp_path / "run").exists()


def test_a_damaged_file_of_the_run_is_found_first(home: Path, tmp_path: Path) -> None:
    evaluation = tmp_path / "run" / "evaluation"
    evaluation.mkdir(parents=True)
    (evaluation / "results.sqlite").write_text("no database, but long enough to be read" * 40)
    with pytest.raises(FolderError, match="must be a database of results"):
        checked(home, tmp_path / "run")
    (evaluation / "results.sqlite").unlink()
    (evaluation / "features").mkdir()
    with pytest.raises(FolderError, match=r"config.json is missing.*it is made again"):
        checked(home, tmp_path / "run", evaluate={"features": None})


def test_defaults_fit_the_table_and_given_numbers_must(home: Path) -> None:
    table = read_clock(home / "sd")
    plain = EvaluateConfig()
    assert fit_steps(plain, None) == (plain, [])
    fitted, notes = fit_steps(plain, table)
    assert (fitted.reference_steps, fitted.stage_one_steps) == (250, (50,))
    assert fitted.teacher_steps == plain.teacher_steps
    assert len(notes) == 2
    assert "evaluate.stage_one_steps is 50 instead of the default 64" in notes[1]
    # A resolved recipe, in which every default is written out, means the same.
    again, _ = fit_steps(EvaluateConfig.model_validate(plain.model_dump()), table)
    assert again == fitted
    with pytest.raises(RecipeError, match=r"evaluate\.stage_one_steps.*48"):
        fit_steps(EvaluateConfig(stage_one_steps=(48,)), table)
    assert [nearest_divisor(n, 1000) for n in (1, 3, 48, 64, 256, 999)] == [1, 4, 50, 50, 250, 1000]


def test_the_reference_may_be_of_a_solver_that_the_clock_allows(home: Path) -> None:
    table = read_clock(home / "sd")
    by_solver = EvaluateConfig(reference_sampler="unipc", reference_steps=26)
    assert fit_steps(by_solver, table)[0].reference_steps == 26  # a solver needs no divisor
    with pytest.raises(RecipeError, match=r"evaluate\.reference_steps must be from 1 to"):
        fit_steps(EvaluateConfig(reference_sampler="unipc", reference_steps=9999), None)
    with pytest.raises(RecipeError, match="reference_sampler=heun"):
        fit_steps(by_solver, FlowClock())
    heun = EvaluateConfig(reference_sampler="heun", reference_steps=20)
    assert fit_steps(heun, FlowClock())[0] == heun


def test_a_report_counts_its_evaluations() -> None:
    plan = Plan((Stage(None, TEACHER, steps=4, updates=1),))
    settings = EvaluateConfig(
        w=(0.0, 1.0), reference_sampler="heun", reference_steps=8, teacher_steps=(2,)
    )
    # Heun: 15 calls, guided where w is not 0; DDIM of 2 steps; the student of 4 steps.
    once = settings.model_copy(update={"fd_to_teacher": False})
    assert evaluations_of(plan, once) == (15 + 30) + (2 + 4) + (4 + 4)
    assert evaluations_of(plan, settings) == evaluations_of(plan, once) + (15 + 30)


def test_a_plan_takes_the_time_of_its_evaluations() -> None:
    plan = Plan((Stage(None, TEACHER, steps=4, updates=3),))
    # 3 x 8 examples, each with two guided sub-steps of the teacher.
    assert Speed(forward=1.0, training=10.0).distillation(plan, 8) == 24 * 4 + 24 * 10


@pytest.mark.parametrize(("most", "known"), [(0, False), (1, True), (4, True)])
def test_too_little_memory_ends_the_measurement_and_not_the_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, known: bool
) -> None:
    plain = Model.forward

    def forward(self: Model, z: Tensor, *rest: Any) -> Tensor:
        if len(z) > most or torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, z, *rest)

    monkeypatch.setattr(Model, "forward", forward)
    run = Run(recipe(home), tmp_path / "run", "cpu", progress=False)
    speed = speed_of(run, [home / "teacher"])
    assert (speed is not None) == known
    assert speed is None or speed.training == 3 * speed.forward


def test_a_backward_pass_is_not_measured_where_memory_is_saved(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    plain = Model.forward

    def forward(self: Model, *args: Any) -> Tensor:
        asked.append(torch.is_grad_enabled())
        return plain(self, *args)

    monkeypatch.setattr(Model, "forward", forward)
    for settings, measured in (({}, True), ({"checkpoint_activations": True}, False)):
        asked.clear()
        run = Run(recipe(home, distill=settings), tmp_path / "run", "cpu", progress=False)
        assert speed_of(run, [home / "teacher"]) is not None
        assert any(asked) == measured


def test_the_first_call_of_a_network_does_not_count(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 100.0, 0.0, 0.5, *[0.0] * 1000])  # a cold call of 100 seconds
    fake = SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr("fewstep.recipes.duration.time", fake)
    run = Run(recipe(home), tmp_path / "run", "cpu", progress=False)
    speed = speed_of(run, [home / "teacher"])
    assert speed is not None
    assert speed.forward == 0.5


def test_a_stage_one_of_a_narrow_range_is_not_asked_outside(home: Path, tmp_path: Path) -> None:
    from tests.recipes.making import guided

    from fewstep.distill.plan import Stage
    from fewstep.models import student_of

    one = student_of(guided(teacher()), Stage("stage-one", "teacher"), (0.0, 0.5), w_dim=16)
    save_model(one, tmp_path / "narrow")
    run = Run(recipe(home), tmp_path / "run", "cpu", progress=False)
    with pytest.raises(RecipeError, match=r"evaluate\.w must lie in \[0, 0\.5\]"):
        check_report(run, [home / "teacher", tmp_path / "narrow"])


PLANS = {
    "no stages": [],
    "stage one alone": [{"parent": "teacher"}],
    "an encoder alone": [{"parent": "teacher", "steps": 2, "direction": "encode"}],
    "a stochastic student alone": [{"parent": "teacher", "steps": 2, "stride": 2, "name": "noisy"}],
    "a pair": [{"parent": "teacher", "steps": 2, "pair": True, "name": "two-two"}],
}


@pytest.mark.parametrize("plan", PLANS)
def test_a_report_of_any_plan_ends(plan: str, home: Path, tmp_path: Path) -> None:
    """Also without held-out images, which this recipe has none of."""
    made = recipe(home, distill={"stages": PLANS[plan]})
    said: list[str] = []
    page = run_study(made, tmp_path, "cpu", said.append, False, [home / "teacher"]).read_text()
    assert ("no deterministic few-step student" in page) == (plan != "a pair")
    assert "No images are held out" in page
    assert any(line.startswith("warning (1): 8 samples") for line in said)
    assert "two-two" in page or plan != "a pair"
    data = json.loads((tmp_path / "report.json").read_text())
    names = {r["model"] for r in data["rows"]}
    expected = {"stage one alone": "stage-one", "a stochastic student alone": "noisy",
                "a pair": "two-two"}  # fmt: skip
    assert names == {"teacher", expected.get(plan, "teacher")}
    assert data["warnings"]
    assert str(home) not in page + (tmp_path / "report.json").read_text()
