"""The study of consistency students: measured under both samplers, and printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.recipes.config import check_recipe
from fewstep.recipes.study import run_study
from studies import consistency

STAGE = {"kind": "consistency-distillation", "substeps": 4, "order": 2, "parent": "teacher"}
RECIPE = {
    "name": "tiny",
    "data": {"name": "digits"},
    "network": {"channels": [8, 16], "groups": 4, "w_dim": 32},
    "teacher": {"updates": 2, "batch_size": 8},
    "distill": {"updates": 2, "batch_size": 8, "stages": [STAGE]},
    "evaluate": {"w": [1], "samples": 8, "batch_size": 8, "reference_steps": 4,
                 "teacher_steps": [], "consistency_steps": [2, 1]},
}  # fmt: skip


def test_the_table_has_every_student_under_both_samplers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run_study(check_recipe(RECIPE, "recipe.yaml"), run, "cpu", lambda _: None, progress=False)
    consistency.main(["measure", str(run), "--device", "cpu"])
    capsys.readouterr()
    consistency.main(["write", f"end={run}", f"end={run}"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert rows[0][3] == "fd_digits, w = 1"
    found = {(row[1], row[2]): row[5] for row in rows[2:]}
    assert list(found) == [
        ("4", "deterministic"),
        ("2", "consistency"),
        ("2", "deterministic"),
        ("1", "consistency"),
    ]
    assert found["2", "consistency"] == "-"
    one, again = found["1", "consistency"].split("/")
    assert float(one) == float(again) > 0
