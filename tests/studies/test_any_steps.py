"""An any-step student beside separate students."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from studies.cells import DDIM, Line
from studies.common import StudyError
from tests.studies.reports import rows, write_report

from fewstep.recipes.config import check_recipe, save_recipe
from studies import any_steps

SEPARATE = [{"parent": "teacher", "steps": 4}, {"parent": "student-4", "steps": 2}]
ONE = [{"parent": "teacher", "any_steps": [4, 2]}]


def report(folder: Path, stages: list[dict[str, object]], lines: list[Line], rms: float) -> Path:
    def figures(line: Line, w: float) -> dict[str, float]:
        return {"fd_x": rms * (1 + w), "rms_to_teacher": rms * line.steps}

    path = write_report(folder, rows(lines, [0.0, 1.0], figures))
    distill = {"batch_size": 6, "updates": 10, "stages": stages}
    recipe = {"name": "r", "data": {"name": "digits"}, "distill": distill, "evaluate": {"w": [0]}}
    save_recipe(check_recipe(json.loads(json.dumps(recipe)), "r"), folder / "recipe.yaml")
    return path


def test_the_ratios_are_those_of_every_seed_and_w(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apart = [Line("student-4", DDIM, 4), Line("student-2", DDIM, 2)]
    one = [Line("student-any", DDIM, n) for n in (4, 2)]
    paths = []
    for seed, (a, b) in enumerate(((0.1, 0.2), (0.2, 0.2))):
        paths += [report(tmp_path / f"separate-{seed}", SEPARATE, apart, a)]
        paths += [report(tmp_path / f"one-{seed}", ONE, one, b)]
    any_steps.main([str(p) for p in paths])
    out = capsys.readouterr().out.splitlines()
    assert out[2:5] == [
        "| 4, separate | 0.10/0.20 0.20/0.40 | 0.400/0.800 0.400/0.800 |",
        "| 4, student-any | 0.20/0.20 0.40/0.40 | 0.800/0.800 0.800/0.800 |",
        "| 4, ratio | 1.500 | 1.500 |",
    ]
    # 10 updates of 6 examples: 7 and 5 evaluations each; 4 x 4 + 2 x 8 + 6 x 3 per update.
    assert "evaluations: 720 and 500, 0.69 of them" in out
    with pytest.raises(StudyError, match="in pairs"):
        any_steps.main([str(paths[0])])
