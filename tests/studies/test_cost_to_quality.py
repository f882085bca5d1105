"""Plans to four steps: what they cost, and their table, CSV and plot."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from studies.cells import RMS
from studies.common import StudyError
from studies.cost_to_quality import FD
from studies.cost_to_quality_plans import BROUGHT, PLANS, Entry

from fewstep.folders import load, save_model
from fewstep.models import student_of
from fewstep.recipes.config import Recipe, load_recipe, save_recipe
from studies import cost_to_quality


def test_plans_cost_what_the_page_says() -> None:
    digits = load_recipe("digits")
    chain = PLANS["chain-1024"].evaluations(digits)
    assert chain == 2_560_000
    # The plans that are compared at a third of the chain's cost.
    for name in ("short-8", "none-8", "short-4-2", "none-4-second", "none-8-4-second"):
        assert PLANS[name].evaluations(digits) == pytest.approx(chain / 3, rel=0.005)


def test_every_plan_ends_at_four_steps_and_shares_a_stage_one_that_is_there() -> None:
    digits = load_recipe("digits")
    for entry in PLANS.values():
        stages = list(entry.recipe(digits, 0, whole=True).distill.plan())
        assert (stages[-1].name, stages[-1].steps) == ("student-4", 4)
        assert (stages[0].name == "stage-one") is (entry.stage_one is not None)
        assert len(entry.recipe(digits, 0).distill.stages) == len(stages) - bool(entry.shares)
        if entry.shares not in (None, "demo"):
            assert PLANS[entry.shares].stage_one == entry.stage_one
    for (name, _), models in BROUGHT.items():
        made = {s.name for s in PLANS[name].recipe(digits, 0, whole=True).distill.plan()}
        assert set(models) <= made


def small_plans(recipe: Recipe) -> dict[str, Entry]:
    """Two small plans: the first uses the demo's stage one, the second has none."""
    one = {"parent": "teacher", "updates": recipe.distill.updates}
    to_4 = {"parent": "stage-one", "steps": 4, "updates": 2}
    straight = {"parent": "teacher", "steps": 4, "updates": 1}
    return {
        "chain-1024": Entry("a chain", one, (to_4,), "demo"),
        "none": Entry("no stage one", None, (straight,)),
    }


def test_plans_are_made_once_and_written(
    recipe: Recipe,
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cost_to_quality, "PLANS", small_plans(recipe))
    monkeypatch.setattr(cost_to_quality, "REFERENCE_STEPS", 8)
    # The plan without a stage one was made before, by another run beside the demo.
    brought = {("none", 0): {"student-4": "other/from-the-teacher"}}
    monkeypatch.setattr(cost_to_quality, "BROUGHT", brought)
    plan = cost_to_quality.PLANS["none"].recipe(recipe, 0).distill.plan()
    student = student_of(load(run_folder / "teacher"), next(iter(plan)), recipe.distill.w)
    save_model(student, run_folder.parent / "other" / "from-the-teacher")
    base, out, docs = tmp_path / "base.yaml", tmp_path / "study", tmp_path / "docs"
    save_recipe(recipe, base)
    shared = ["--recipe", str(base)]
    make = ["make", str(run_folder), "--out", str(out), *shared, "--samples", "20"]
    chain = [*make, "--plans", "chain-1024", "--seeds", "0", "1"]
    cost_to_quality.main(chain)
    cost_to_quality.main([*make, "--plans", "none", "--seeds", "0"])
    said = capsys.readouterr().out
    assert "none, seed 0\nstudent-4: already made\n" in said
    one = json.loads((out / "chain-1024" / "seed-0" / "figures.json").read_text())
    two = json.loads((out / "chain-1024" / "seed-1" / "figures.json").read_text())
    assert [row["w"] for row in one] == [0.0, 1.0, 4.0]
    assert one[0]["model"] == "chain-1024/seed-0"
    assert one[0][RMS] != two[0][RMS]
    # The stage one is the demo's; the student is the plan's own.
    weights = "stage-one/unet/diffusion_pytorch_model.safetensors"
    assert (out / "chain-1024/seed-0" / weights).read_bytes() == (run_folder / weights).read_bytes()
    assert not (out / "none" / "seed-0" / "stage-one").exists()
    cost_to_quality.main(chain)
    assert "updates of" in said
    assert "updates of" not in capsys.readouterr().out  # nothing is trained again

    for folder in ("results/data", "images"):
        (docs / folder).mkdir(parents=True)
    cost_to_quality.main(["write", str(out), *shared, "--docs", str(docs)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| plan | seeds | evaluations, thousands | of the chain's | fd_")
    assert lines[2].startswith("| a chain (`chain-1024`) | 2 | 0 | 1.00 | ")
    low, high = sorted((one[1][FD], two[1][FD]))
    assert f", {(low + high) / 2:.2f} ± {(high - low) / 2:.2f}, " in lines[2].split(" | ")[4]
    published = list(
        csv.DictReader(io.StringIO((docs / "results/data/cost-to-quality.csv").read_text()))
    )
    assert [(r["plan"], r["seed"], r["w"]) for r in published[:4]] == [
        ("chain-1024", "0", "0.0"),
        ("chain-1024", "0", "1.0"),
        ("chain-1024", "0", "4.0"),
        ("chain-1024", "1", "0.0"),
    ]
    assert float(published[3][RMS]) == two[0][RMS]
    svg = (docs / "images" / "cost-to-quality.svg").read_text()
    assert ">chain-1024<" in svg
    assert ">none<" in svg


def test_a_folder_without_plans_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="at least one plan must be finished"):
        cost_to_quality.main(["write", str(tmp_path)])
