"""Measured cells of a report, with an error where one is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.measure.cell import DDIM, Cell, Cells, Line
from fewstep.metrics import RMS
from studies.common import StudyError, joined, read_json

__all__ = ["DDIM", "RMS", "Cell", "Cells", "Column", "Line", "Report", "at", "cells_of", "figure",
           "longest"]  # fmt: skip


def cells_of(rows: Sequence[Mapping[str, Any]]) -> Cells:
    """Return the cells of the rows of a report. Raises StudyError if there are none."""
    if not rows:
        raise StudyError(
            "a report must have at least one row of figures, got none. Measure a model first."
        )
    return Cells(Cell.of(row, row) for row in rows)


def figure(cell: Cell, name: str) -> float:
    """Return a figure of a cell. Raises StudyError if the cell does not have it."""
    figures = cell.figures.by_name
    value = figures.get(name)
    if value is None:
        raise StudyError(
            f"the cell {cell.line}, w = {cell.w:g} must have the figure {name}; it has "
            f"{', '.join(k for k, v in figures.items() if v is not None) or 'none'}. "
            "Measure it again with this version of fewstep."
        )
    return value


def at(cells: Cells, line: Line, w: float) -> Cell:
    """Return a cell. Raises StudyError if it was not measured."""
    cell = cells.get(line, w)
    if cell is None:
        measured = joined(v for v in cells.ws if cells.get(line, v))
        raise StudyError(
            f"the report must have a cell of {line} at w = {w:g}; it has this line at "
            f"{f'w = {measured}' if measured else 'no w'}. Measure it, or pass another report."
        )
    return cell


def longest(cells: Cells, model: str) -> int:
    """Return the largest number of steps at which a model was measured.

    Raises StudyError if it was not measured.
    """
    steps = [line.steps for line in cells.lines if line.model == model]
    if not steps:
        models = ", ".join(dict.fromkeys(line.model for line in cells.lines))
        raise StudyError(
            f"the report must have a cell of {model}; it has {models or 'none'}. Measure the "
            "model, or pass another report."
        )
    return max(steps)


@dataclass(frozen=True)
class Report:
    """What the tables need of a report.json.

    Attributes:
        cells: the measured cells.
        facts: device, versions, number of samples, ...
        matrix: matrix[i][j] is the paired distance of the student at ws[i] to the teacher at ws[j].
    """

    cells: Cells
    facts: Mapping[str, str]
    matrix: Sequence[Sequence[float]]

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read a report.json. Raises StudyError if there is none, or it has no rows."""
        data = read_json(path)
        return cls(cells_of(data["rows"]), data["facts"], data["knob"]["matrix"])


class Column(NamedTuple):
    """One column of a table: a figure at several w, with one space between."""

    head: str
    figure: str
    digits: int
    ws: Sequence[float]

    def text(self, line: Line, reports: Sequence[Cells]) -> str:
        """Return the figures of a line; those of several reports have a slash between."""
        return " ".join(self._seeds(line, w, reports) or "-" for w in self.ws)

    def _seeds(self, line: Line, w: float, reports: Sequence[Cells]) -> str:
        found = [cells.get(line, w) for cells in reports]
        return "/".join(self._value(cell) for cell in found if cell)

    def _value(self, cell: Cell) -> str:
        value = cell.figures.by_name.get(self.figure)
        return "-" if value is None else f"{value:.{self.digits}f}"
