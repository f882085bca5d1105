"""Cells are found by model, sampler, steps and w; what is missing is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from studies.cells import DDIM, Column, Line, Report, at, cells_of, figure, longest
from studies.common import StudyError, facts_line, joined, markdown, read_json

STUDENT = Line("student-4", DDIM, 4)


def row(w: float, fd: float, recall: float | None = 0.5) -> dict[str, object]:
    place = {**STUDENT._asdict(), "evaluations": 4, "w": w}
    return {**place, "fd_x": fd, "recall": recall}


HELD_OUT = {"model": "held-out", "sampler": None, "steps": None, "evaluations": 0, "w": None}


def test_cells_are_found_by_line_and_w() -> None:
    cells = cells_of([{**HELD_OUT, "fd_x": 0.25}, row(2.0, 1.5), row(0.0, 1.25, None)])
    assert (cells.fd_name, cells.ws, cells.lines) == ("fd_x", [0.0, 2.0], [STUDENT])
    assert cells.held_out is not None
    assert cells.held_out.figures.fd == 0.25
    assert figure(at(cells, STUDENT, 2.0), "fd_x") == 1.5
    assert at(cells, STUDENT, 2.0).row.items() >= row(2.0, 1.5).items()
    assert [cell.w for cell in cells.of(STUDENT)] == [2.0, 0.0]
    assert [cell.figures.fd for cell in cells.at_w(0.0)] == [1.25]
    assert cells.get(STUDENT, 1.0) is None
    assert longest(cells, "student-4") == 4


def test_what_is_missing_is_named() -> None:
    cells = cells_of([row(2.0, 1.5, None)])
    with pytest.raises(StudyError, match=r"student-4, deterministic, 4 at w = 1; .* w = 2\. M"):
        at(cells, STUDENT, 1.0)
    with pytest.raises(StudyError, match=r"teacher, deterministic, 64 at w = 1; .* at no w"):
        at(cells, Line("teacher", DDIM, 64), 1.0)
    with pytest.raises(StudyError, match="w = 2 must have the figure recall; it has fd_x"):
        figure(at(cells, STUDENT, 2.0), "recall")
    with pytest.raises(StudyError, match="a cell of teacher; it has student-4"):
        longest(cells, "teacher")
    with pytest.raises(StudyError, match="at least one row"):
        cells_of([])


def test_a_column_has_several_w_and_several_seeds() -> None:
    seeds = [
        cells_of([row(0.0, 1.0), row(1.0, 2.0)]),
        cells_of([row(0.0, 3.0), row(1.0, 4.0, None)]),
    ]
    assert Column("", "fd_x", 1, [0.0, 1.0]).text(STUDENT, seeds) == "1.0/3.0 2.0/4.0"
    assert Column("", "recall", 2, [1.0, 2.0]).text(STUDENT, seeds) == "0.50/- -"


def test_a_report_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(StudyError, match=r"report\.json is not a file"):
        Report.read(path)
    data = {"rows": [row(1.0, 2.0)], "facts": {"device": "a test"}, "knob": {"matrix": [[0.1]]}}
    path.write_text(json.dumps(data))
    report = Report.read(path)
    assert at(report.cells, STUDENT, 1.0).figures.fd == 2.0
    assert (report.matrix, dict(report.facts)) == ([[0.1]], {"device": "a test"})
    path.write_text("no JSON")
    with pytest.raises(StudyError, match=r"report\.json is not JSON"):
        read_json(path)


def test_tables_and_lists_as_text() -> None:
    text = markdown(["", "a", "b"], [["x", "1", "2"]], numbers=[2])
    assert text == "| | a | b |\n| --- | --- | ---: |\n| x | 1 | 2 |"
    assert joined([0.0, 1.0, 2.5]) == "0, 1, 2.5"
    assert facts_line({"device": "CPU", "seed": "0"}) == "device CPU; seed 0"
