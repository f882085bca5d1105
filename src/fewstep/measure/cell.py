"""Measured cells: a model, a sampler, a number of steps and a w, with the figures found there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fewstep.measure.images import ImageFile
from fewstep.metrics import Figures

DDIM = "deterministic"  # the sampler of DDIM steps
STOCHASTIC = "stochastic"
CONSISTENCY = "consistency"
NOISY = (STOCHASTIC, CONSISTENCY)  # samplers that add noise of their own
# One line of a printed table or of a JSON file: plain values under their names.
Row = dict[str, str | int | float | None]


class Line(NamedTuple):
    """What is the same in the cells of one model at every w."""

    model: str
    sampler: str
    steps: int

    def __str__(self) -> str:
        return ", ".join(map(str, self))


@dataclass(frozen=True)
class Cell:
    """One measured cell.

    Attributes:
        model: its name in the tables; "held-out" for real images.
        sampler, steps, w: how its images were drawn; None for real images.
        evaluations: of the network, per image.
        figures: what was measured of its images.
        seconds_per_image: what drawing took; None where that is not known.
        missing: the reason of each figure that is None, by its name.
        key: the hash of everything that the cell depends on; "" where it is not known.
        path: the file of its images; None where they are not kept.
    """

    model: str
    sampler: str | None
    steps: int | None
    w: float | None
    evaluations: int
    figures: Figures
    seconds_per_image: float | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
    path: Path | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any], figures: Mapping[str, Any], **more: Any) -> Cell:
        """Return a cell from the plain values of a file, and figures under the names of tables."""
        return cls(
            row["model"],
            row["sampler"],
            row["steps"],
            row["w"],
            row["evaluations"],
            Figures.named(figures),
            row.get("seconds_per_image"),
            **more,
        )

    @property
    def row(self) -> Row:
        """The cell as tables and report.json have it."""
        return {
            "model": self.model,
            "sampler": self.sampler,
            "steps": self.steps,
            "evaluations": self.evaluations,
            "w": self.w,
            **self.figures.by_name,
            "seconds_per_image": self.seconds_per_image,
        }

    @property
    def line(self) -> Line:
        """Model, sampler and steps of a cell that a model has drawn."""
        assert self.sampler is not None
        assert self.steps is not None
        return Line(self.model, self.sampler, self.steps)

    @property
    def images(self) -> Tensor:
        """The first images (B, *D) in [-1, 1], at most 2,000, from the disk.

        B is 0 where the images of the model were not finite.
        """
        return self.file.first()

    @property
    def file(self) -> ImageFile:
        """The file of its images."""
        assert self.path is not None
        return ImageFile(self.path)


class Cells:
    """Measured cells in their order, found by (model, sampler, steps, w).

    Attributes:
        drawn: the cells of models, without real images.
        held_out: the cell of the real images; None where there is none.
        ws: the guidance weights, ascending.
        lines: the lines, in the order of their first cells.
    """

    def __init__(self, cells: Iterable[Cell]) -> None:
        """Take the cells. Of several at one place, the first is found."""
        self._cells = tuple(cells)
        self.drawn = [cell for cell in self._cells if cell.w is not None]
        self.held_out = next((cell for cell in self._cells if cell.w is None), None)
        self.ws = sorted({cell.w for cell in self.drawn if cell.w is not None})
        self.lines = list(dict.fromkeys(cell.line for cell in self.drawn))
        self._found = {(cell.line, cell.w): cell for cell in reversed(self.drawn)}

    def __iter__(self) -> Iterator[Cell]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)

    @property
    def fd_name(self) -> str:
        """The name of the Fréchet distance, which is that of the first cell."""
        return self._cells[0].figures.fd_name

    @property
    def rows(self) -> list[Row]:
        """The cells as tables and report.json have them."""
        return [cell.row for cell in self]

    def get(self, line: Line, w: float) -> Cell | None:
        """Return a cell; None where it was not measured."""
        return self._found.get((line, w))

    def of(self, line: Line) -> list[Cell]:
        """Return the cells of a line."""
        return [cell for cell in self.drawn if cell.line == line]

    def at_w(self, w: float) -> Cells:
        """Return the cells at one w."""
        return Cells(cell for cell in self.drawn if cell.w == w)

    def longest(self, model: str, w: float, sampler: str = DDIM) -> Cell | None:
        """Return the cell of a model with most steps at a w; None where there is none."""
        found = [line for line in self.lines if line[:2] == (model, sampler)]
        cells = [cell for cell in (self.get(line, w) for line in found) if cell is not None]
        return max(cells, key=lambda cell: cell.line.steps, default=None)
