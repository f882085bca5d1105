"""Measured cells: a model, sampler, number of steps and w, with the figures measured there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.metrics import distance_key
from studies.common import StudyError, joined, read_json

RMS = "rms_to_teacher"
DDIM = "deterministic"
NOT_FIGURES = ("model", "sampler", "steps", "evaluations", "w")


class Line(NamedTuple):
    """One line of a table: the same model, sampler and number of steps at every w."""

    model: str
    sampler: str
    steps: int

    def __str__(self) -> str:
        return ", ".join(map(str, self))


@dataclass(frozen=True)
class Cell:
    """One measured cell.

    Attributes:
        line: model, sampler and steps.
        w: guidance weight.
        evaluations: of the network, per image.
        figures: name -> value; None where the figure does not exist for this cell.
    """

    line: Line
    w: float
    evaluations: int
    figures: Mapping[str, float | None]

    def __getitem__(self, figure: str) -> float:
        """Return a figure. Raises StudyError if this cell does not have it."""
        value = self.figures.get(figure)
        if value is None:
            raise StudyError(
                f"the cell {self.line}, w = {self.w:g} must have the figure {figure}; it has "
                f"{', '.join(k for k, v in self.figures.items() if v is not None) or 'none'}. "
                "Measure it again with this version of fewstep."
            )
        return value

    def text(self, figure: str, digits: int) -> str:
        """Return a figure rounded to so many digits, "-" if this cell does not have it."""
        value = self.figures.get(figure)
        return "-" if value is None else f"{value:.{digits}f}"

    @property
    def row(self) -> dict[str, Any]:
        """The cell as report.json has it."""
        place = {**self.line._asdict(), "evaluations": self.evaluations, "w": self.w}
        return place | dict(self.figures)


class Cells:
    """The cells of one report, found by line and w."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Read the rows of a report. Raises StudyError if there are none."""
        if not rows:
            raise StudyError(
                "a report must have at least one row of figures, got none. Measure a model first."
            )
        self.fd: str = distance_key(rows[0])
        self.cells = [_cell(row) for row in rows if row["w"] is not None]
        self.held_out = next((_figures(row) for row in rows if row["model"] == "held-out"), None)
        self.ws = sorted({cell.w for cell in self.cells})
        self.lines = list(dict.fromkeys(cell.line for cell in self.cells))
        self._found = {(cell.line, cell.w): cell for cell in reversed(self.cells)}

    def get(self, line: Line, w: float) -> Cell | None:
        """Return a cell, None if it was not measured."""
        return self._found.get((line, w))

    def at(self, line: Line, w: float) -> Cell:
        """Return a cell. Raises StudyError if it was not measured."""
        cell = self.get(line, w)
        if cell is None:
            measured = joined(v for v in self.ws if self.get(line, v))
            raise StudyError(
                f"the report must have a cell of {line} at w = {w:g}; it has this line at "
                f"{f'w = {measured}' if measured else 'no w'}. Measure it, or pass another report."
            )
        return cell

    def of(self, line: Line) -> list[Cell]:
        """Return the cells of a line, in the order in which they were measured."""
        return [cell for cell in self.cells if cell.line == line]

    def at_w(self, w: float) -> list[Cell]:
        """Return the cells at one w, in the order in which they were measured."""
        return [cell for cell in self.cells if cell.w == w]

    def longest(self, model: str) -> int:
        """Return the largest number of steps at which a model was measured.

        Raises StudyError if it was not measured.
        """
        steps = [line.steps for line in self.lines if line.model == model]
        if not steps:
            models = ", ".join(dict.fromkeys(line.model for line in self.lines))
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
        return cls(Cells(data["rows"]), data["facts"], data["knob"]["matrix"])


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
        return "/".join(cell.text(self.figure, self.digits) for cell in found if cell)


def _cell(row: Mapping[str, Any]) -> Cell:
    line = Line(row["model"], row["sampler"], row["steps"])
    return Cell(line, row["w"], row["evaluations"], _figures(row))


def _figures(row: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: value for name, value in row.items() if name not in NOT_FIGURES}
