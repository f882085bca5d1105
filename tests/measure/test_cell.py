"""A cell and its row are the same, and cells are found by model, sampler, steps and w."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fewstep.measure.cell import DDIM, Cell, Cells, Line
from fewstep.metrics import Figures

FIGURES = Figures("fd_x", 2.0, 0.1, 0.9, 0.5, 8.0, 0.9, 7.0, 0.2, 0.1, 0.3)
CELL = Cell("student-4", DDIM, 4, 1.0, 4, FIGURES, 0.25)
REAL = Cell(
    "held-out", None, None, None, 0, replace(FIGURES, rms_to_teacher=None, fd_to_teacher=None)
)


@pytest.mark.parametrize("cell", [CELL, REAL, replace(CELL, figures=Figures("fid", 1.5, None))])
def test_a_cell_comes_back_from_its_row(cell: Cell) -> None:
    row = json.loads(json.dumps(cell.row))
    assert Cell.of(row, row) == cell
    kernel = "kid" if cell.figures.fd_name == "fid" else "kd_x"
    assert list(row)[5:7] == [cell.figures.fd_name, kernel]


def test_figures_of_earlier_versions_are_read() -> None:
    old = Figures.named({"score": 8.0, "fd_x": 2.0, "of_another_time": 1.0})
    assert old == Figures("fd_x", 2.0, score=8.0)
    names = {"fd_to_teacher": 0.1, "fd_x": 2.0}  # in the order of the database
    assert Figures.named(names) == Figures("fd_x", 2.0, fd_to_teacher=0.1)


def test_cells_are_found_by_line_and_w() -> None:
    many = [replace(CELL, model="teacher", steps=n, w=w) for n in (4, 256, 8) for w in (1.0, 0.0)]
    twice = replace(CELL, evaluations=9)
    cells = Cells([REAL, *many, CELL, twice])
    assert (len(cells), len(cells.drawn), cells.held_out) == (9, 8, REAL)
    assert (cells.ws, cells.fd_name) == ([0.0, 1.0], "fd_x")
    assert cells.lines == [*(Line("teacher", DDIM, n) for n in (4, 256, 8)), CELL.line]
    assert cells.get(CELL.line, 1.0) is CELL
    assert cells.get(CELL.line, 2.0) is None
    assert cells.of(CELL.line) == [CELL, twice]
    assert cells.longest("teacher", 0.0) is many[3]
    assert cells.longest("teacher", 0.0, "heun") is None
    assert list(cells.at_w(0.0)) == [many[1], many[3], many[5]]
    assert cells.rows[0] == REAL.row
