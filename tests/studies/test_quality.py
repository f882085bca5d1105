"""What each solver needs for a student's figures, measured and written."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from studies.cells import DDIM, RMS, Cell, Line, cells_of
from tests.studies.reports import rows

from fewstep.metrics import Figures
from studies import quality

# Fréchet distance and paired distance; 64 steps are the reference.
TEACHER = {
    (DDIM, 64): (2.0, 0.0),
    (DDIM, 4): (4.0, 0.3),
    (DDIM, 8): (3.0, 0.2),
    ("unipc", 2): (5.0, 0.4),
    ("unipc", 4): (2.1, 0.15),
    ("unipc", 8): (2.15, 0.05),
}
STUDENTS = {4: (2.5, 0.2), 1: (3.0, 0.25)}
FIGURES = {Line("teacher", s, n): f for (s, n), f in TEACHER.items()}
FIGURES |= {Line(f"student-{n}", DDIM, n): f for n, f in STUDENTS.items()}


def figures(line: Line, w: float) -> dict[str, Any]:
    fd, rms = FIGURES[line]
    return {"fd_x": fd, "recall": 0.5, "variance": 7.0, RMS: rms}


CELLS = cells_of(rows(list(FIGURES), [1.0], figures))


def at(evaluations: int, fd: float) -> Cell:
    return Cell("teacher", "heun", evaluations, 1.0, evaluations, Figures("fd_x", fd))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({4: 3.0, 6: 2.0, 8: 1.0}, "6 (not 4)"),
        ({4: 3.0, 8: 1.0, 6: 1.5}, "6 (not 4)"),
        ({4: 1.0, 6: 3.0, 8: 1.0}, "8 (not 6)"),  # enough once, but not from there on
        ({4: 1.0, 6: 1.0}, "4"),
        ({4: 1.0, 6: 3.0}, "> 6"),
        ({}, "-"),
    ],
)
def test_needed_is_the_first_count_from_which_on_all_suffice(
    values: dict[int, float], text: str
) -> None:
    assert quality.needed([at(n, fd) for n, fd in values.items()], "fd_x", 2.0) == text


def test_the_curves_have_every_solver_by_evaluations() -> None:
    lines = quality.curves(CELLS.at_w(1.0)).splitlines()
    assert lines[0] == "| fd_x / paired distance at | 4 | 8 | 16 |"
    assert lines[2] == "| UniPC | 5.00 / 0.400 | 2.10 / 0.150 | 2.15 / 0.050 |"
    assert lines[4] == "| Heun | - | - | - |"
    assert lines[5] == "| DDIM | - | 4.00 / 0.300 | 3.00 / 0.200 |"
    assert lines[9:] == [
        "| teacher, 64 steps | 128 | 2.00 | 0.000 |",
        "| student-4 | 4 | 2.50 | 0.200 |",
        "| student-1 | 1 | 3.00 | 0.250 |",
    ]


def test_the_answers_are_against_the_teacher_and_student_4() -> None:
    lines = quality.answers(CELLS.at_w(1.0)).splitlines()
    wanted = "fd_x within 10 % of the teacher's | student-4's fd_x | student-4's paired distance"
    assert lines[0] == f"| evaluations for | {wanted} |"
    assert lines[2] == "| UniPC | 8 (not 4) | 8 (not 4) | 8 (not 4) |"
    assert lines[4] == "| Heun | - | - | - |"
    assert lines[5] == "| DDIM | > 16 | > 16 | 16 (not 8) |"
    assert lines[6] == "| students | > 4 | 4 (not 1) | 4 (not 1) |"


def test_solvers_are_read_with_their_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.solver_steps("unipc=8,16") == ("unipc", (8, 16))
    assert quality.solver_steps("heun") == ("heun", quality.STEPS["heun"])
    with pytest.raises(SystemExit):
        quality.main(["measure", "run", "--out", "out", "--w", "1", "--solvers", "euler=8"])
    assert "a solver must be one of unipc, dpm-solver++, heun" in capsys.readouterr().err


def test_a_run_is_measured_and_written(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study-quality-small"
    command = ["measure", str(run_folder), "--out", str(out), "--w", "1"]
    command += ["--solvers", "unipc=4,2", "deterministic=2"]
    quality.main(command)
    measured = json.loads((out / quality.ROWS).read_text())
    assert [(r["model"], r["sampler"], r["steps"], r["evaluations"]) for r in measured] == [
        ("teacher", DDIM, 16, 32),
        *((f"student-{n}", DDIM, n, n) for n in (8, 4, 2, 1)),
        ("teacher", "unipc", 4, 8),
        ("teacher", "unipc", 2, 4),
        ("teacher", DDIM, 2, 4),
    ]
    assert measured[0][RMS] == 0.0
    assert all(r[RMS] > 0 for r in measured[1:])
    assert len(capsys.readouterr().out.splitlines()) == 8  # a line for each cell that is measured
    quality.main(command)  # what is known is not measured again
    assert capsys.readouterr().out == ""
    assert json.loads((out / quality.ROWS).read_text()) == measured

    docs = tmp_path / "docs"
    for folder in ("results/data", "images"):
        (docs / folder).mkdir(parents=True)
    quality.main(["write", str(out), "--docs", str(docs)])
    text = capsys.readouterr().out
    assert text.startswith("\n### small, w = 1\n\n| fd_digits / paired distance at | 4 | 8 |\n")
    published = list(csv.DictReader(io.StringIO((docs / "results/data/quality.csv").read_text())))
    assert [r["data"] for r in published] == ["small"] * 8
    assert [float(r["fd"]) for r in published] == [r["fd_digits"] for r in measured]
    assert (docs / "images" / "quality-small-w1.svg").read_text().startswith("<?xml")
