"""The tables of a report: every line, its ratios to the teacher, and at the teacher's best w."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from studies.cells import DDIM, Line
from studies.common import StudyError
from tests.studies.reports import rows, write_report

from studies import table

MANY, DDIM_4, UNIPC = (Line("teacher", s, n) for s, n in ((DDIM, 64), (DDIM, 4), ("unipc", 4)))
STUDENT = Line("student-4", DDIM, 4)
FD = {MANY: 2.0, DDIM_4: 8.0, UNIPC: 5.0, STUDENT: 3.0}


def figures(line: Line, w: float) -> dict[str, Any]:
    rms = 0.0 if line == MANY else 0.1 * FD[line]
    # The teacher is closest to the data at w = 1.
    fd = FD[line] + abs(w - 1)
    return {"fd_x": fd, "accuracy": FD[line] / 10, "variance": 2 * FD[line], "rms_to_teacher": rms}


def doubled(line: Line, w: float) -> dict[str, Any]:
    found = figures(line, w)
    return found if line == MANY else {k: 2 * v for k, v in found.items()}


def test_seeds_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix = {"knob": {"matrix": [[0.1, 0.2], [0.1, 0.3]]}}
    paths = [
        write_report(tmp_path / str(seed), rows(list(FD), [0.0, 1.0], made), **matrix)
        for seed, made in enumerate((figures, doubled))
    ]
    table.main([str(p) for p in paths])
    lines = capsys.readouterr().out.splitlines()
    head = "| model, sampler, steps (evaluations) | fd_x, w = 0, 1 | paired distance | "
    assert lines[0] == head + "accuracy, w = 1 | variance, w = 1 |"
    assert "| teacher, deterministic, 64 (128) | 3.00/3.00 2.00/2.00 |" in lines[2]
    found = "4.00/8.00 3.00/6.00 | 0.300/0.600 0.300/0.600 | 0.300/0.600 | 6.00/12.00 |"
    assert lines[5] == f"| student-4, deterministic, 4 (4) | {found}"
    assert lines[7:9] == ["| ratio | seen |", "| --- | --- |"]
    assert lines[9] == "| student-4 / teacher, 64 steps, fd_x, w = 0 | 1.333 / 2.667 |"
    assert "| student-4 / teacher, deterministic, 4 steps, fd_x, w = 1 | 0.375 / 0.375 |" in lines
    assert "| student-4 / teacher, unipc, 4 steps, rms_to_teacher, w = 1 | 0.600 / 0.600 |" in lines
    assert "| student-4 / teacher, variance, w = 1 | 1.500 / 3.000 |" in lines
    assert "| w x w: rows of 2 with the smallest on the diagonal | 1.000 / 1.000 |" in lines
    assert lines[-3:] == ["device a test", "", "device a test"]


def test_a_figure_that_no_cell_has_makes_no_column(tmp_path: Path) -> None:
    made = rows(list(FD), [1.0], lambda line, w: {**figures(line, w), "recall": 0.25})
    report = table.Report.read(write_report(tmp_path, made))
    head, _, first, *_ = table.seeds([report]).splitlines()
    assert head.count("w = 1") == 4
    assert "recall, w = 1 | variance, w = 1 |" in head
    assert "precision" not in head
    assert first.endswith("| 0.25 | 4.00 |")


def test_students_are_compared_at_the_teachers_best_w(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = {"sampler": None, "steps": None, "evaluations": 0, "w": None}
    held_out = {"model": "held-out", **nothing, "fd_x": 0.75, "accuracy": 0.9}
    made = [held_out, *rows(list(FD), [0.0, 1.0, 2.0], figures)]
    table.main(["--best-w", str(write_report(tmp_path, made))])
    lines = capsys.readouterr().out.splitlines()
    # The evaluations are those at the first w, where the teacher needs one pass.
    assert lines[2].startswith("| teacher, deterministic, 64 (64) | 3.00 2.00 3.00 | 0.200")
    assert "w = 0, 1, 2; the teacher's best w: 1" in lines
    assert "| student-4, deterministic, 4 | 1.500 | +10.0 |" in lines
    assert "| teacher, unipc, 4 | 2.500 | +30.0 |" in lines
    assert not any(line.startswith("| teacher, deterministic, 64 |") for line in lines)
    assert lines[-2:] == ["held-out images: fd_x 0.75, accuracy 0.900", "device a test"]


def test_several_reports_have_no_one_best_w(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_report(tmp_path, rows(list(FD), [1.0], figures)))
    with pytest.raises(SystemExit):
        table.main(["--best-w", path, path])
    assert "--best-w takes one report, got 2" in capsys.readouterr().err


def test_a_report_without_w_of_1_is_named(tmp_path: Path) -> None:
    path = write_report(tmp_path, rows(list(FD), [2.0], figures))
    with pytest.raises(StudyError, match=r"teacher, deterministic, 64 at w = 1; .* at w = 2"):
        table.main([str(path)])
