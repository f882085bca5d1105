"""An any-step student on the command line: made, measured at each number of steps, exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tests.cli.conftest import TINY, fewstep
from tests.cli.test_cli import one_line_error


@pytest.fixture(scope="module")
def run(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of an any-step student of the teacher of the tiny run."""
    stages = [{"parent": "teacher", "any_steps": [4, 2, 1], "order": 2, "states": "trajectory"}]
    distill = {**TINY["distill"], "stages": stages}  # type: ignore[dict-item]
    evaluate = {**TINY["evaluate"], "teacher_steps": [], "solver_steps": []}  # type: ignore[dict-item]
    recipe = {**TINY, "distill": distill, "evaluate": evaluate}
    cwd = tmp_path_factory.mktemp("any")
    (cwd / "any.yaml").write_text(yaml.safe_dump(recipe))
    done = fewstep("distill", "any.yaml", "--plan", "--teacher", run / "teacher", cwd=cwd)
    assert done.returncode == 0, done.stderr
    # 10 updates of 16: 3 trajectories of 8 guided sub-steps, and 3 evaluations of the student.
    assert "student-any            teacher      4,2,1        2     2      10           960" in (
        done.stdout
    )
    done = fewstep("report", "any.yaml", "--out", "run", "--teacher", run / "teacher", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "run"


def test_a_report_has_a_cell_at_each_number_of_steps(run: Path) -> None:
    rows = json.loads((run / "report.json").read_text())["rows"]
    found = [(r["steps"], r["evaluations"], r["w"]) for r in rows if r["model"] == "student-any"]
    assert found == [(n, n, w) for n in (4, 2, 1) for w in (0, 1)]
    assert len({r["rms_to_teacher"] for r in rows if r["model"] == "student-any"}) == 6
    figures = json.loads((run / "student-any" / "fewstep.json").read_text())["figures"]
    assert {f"rms_to_teacher at w=1, steps={n}" for n in (4, 2, 1)} < set(figures)
    shown = fewstep("show", run / "student-any", cwd=run).stdout
    assert "steps        4, 2, 1" in shown
    assert "at 4 steps" in shown
    assert "student-any, 4 steps" in (run / "report.html").read_text()


def test_steps_are_chosen_when_it_is_sampled(run: Path, tmp_path: Path) -> None:
    model = run / "student-any"
    for steps in (4, 1):
        out = tmp_path / f"{steps}.png"
        done = fewstep("sample", model, "--steps", steps, "--out", out, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "4.png").read_bytes() != (tmp_path / "1.png").read_bytes()
    one_line_error(fewstep("sample", model, cwd=tmp_path), "4, 2, 1 steps", "--steps 4")
    one_line_error(fewstep("sample", model, "--steps", 3, cwd=tmp_path), "4, 2, 1 steps")
    asked = ("evaluate", model, "--reference", "digits", "--samples", 40, "--w", "1")
    done = fewstep(*asked, "--steps", "2,1", "--out", tmp_path / "e", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert [r["steps"] for r in rows] == [2, 1]
    one_line_error(
        fewstep(*asked, "--steps", "8", "--out", tmp_path / "f", cwd=tmp_path), "4 or 2 or 1"
    )
    given = ("distill", run / "recipe.yaml", "--out", tmp_path / "g", "--teacher", model)
    one_line_error(fewstep(*given, cwd=tmp_path), "is a student of 4, 2, 1 steps")


def test_the_page_offers_the_steps_of_the_student(run: Path) -> None:
    from fewstep.cli.web.models import open_models, own_steps

    alone = open_models([run / "student-any"], None, "cpu")
    assert own_steps(alone.first) == [1, 2, 4]
    assert alone.steps == []
    beside = open_models([run / "student-any"], run / "teacher", "cpu")
    assert own_steps(beside.first) == [1, 2, 4]
    assert {1, 2, 4, 32} < set(beside.steps)  # those of the teacher


def test_one_number_of_steps_is_exported(run: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "two", run / "student-any"
    export = ("export", model, "--to", "diffusers", "--out", out)
    one_line_error(fewstep(*export, cwd=tmp_path), "steps is required", "--steps 4")
    one_line_error(fewstep(*export, "--steps", 3, cwd=tmp_path), "[4, 2, 1]")
    done = fewstep(*export, "--steps", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "steps        2" in fewstep("show", out, cwd=tmp_path).stdout
    again = ("export", out, "--to", "diffusers", "--out", tmp_path / "x", "--steps", 2)
    one_line_error(fewstep(*again, cwd=tmp_path), "only an any-step student")
    both = ("export", model, "--to", "diffusers", "--out", tmp_path / "w", "--steps", 2, "--w", 1)
    done = fewstep(*both, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for folder, w in ((out, ("--w", 1)), (tmp_path / "w", ("--w", 1))):
        done = fewstep("sample", folder, *w, "--out", f"{folder.name}.png", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
