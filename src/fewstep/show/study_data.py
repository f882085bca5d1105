"""What a report shows, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from fewstep.distill.plan import TEACHER
from fewstep.measure.cell import DDIM, Cell, Cells, Line
from fewstep.show.weak import Warned

COLUMNS = 10  # images of a row of the page


class SheetRow(NamedTuple):
    """One row of a sheet: images (n, C, H, W) in [-1, 1], from the same noise in every row."""

    label: str
    images: Tensor


class KnobCheck(NamedTuple):
    """matrix[i][j]: paired distance of the student at ws[i] to the teacher at ws[j].

    None where the images of one of them were not finite.
    """

    name: str
    ws: list[float]
    matrix: list[list[float | None]]


@dataclass(frozen=True)
class Study:
    """All that the report shows.

    Attributes:
        title: of the page.
        features: name of the features.
        cells: those of held-out images included where there are any.
        sheets: for each w, the images of some models.
        knob: of the deterministic student whose steps are nearest to 4, which is the student of
            the headline; None where there is none.
        strip: images of that student from the same noise, a row for each of several w.
        losses: of each training, (update, loss).
        facts: shown at the top.
        reference: the teacher's cells that the others are compared with; None takes those of DDIM
            with most steps.
        warnings: about figures of the cells.
        missing: sentences, why figures are missing.
        notes: sentences, what was chosen for this report.
        roles: of the models, {name: role}, for the plots.
    """

    title: str
    features: str
    cells: Cells
    sheets: dict[float, list[SheetRow]]
    knob: KnobCheck | None
    losses: dict[str, list[tuple[int, float]]]
    facts: dict[str, str]
    reference: Line | None = None
    warnings: list[Warned] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    roles: Mapping[str, str] = field(default_factory=dict)
    strip: list[SheetRow] = field(default_factory=list)

    @property
    def fd(self) -> str:
        """The name of the Fréchet distance."""
        return self.cells.fd_name

    @property
    def main_w(self) -> float:
        """The w that is shown first: the one nearest to 1."""
        return min(self.cells.ws, key=lambda w: abs(w - 1.0))

    def teacher(self, w: float, steps: int | None = None) -> Cell | None:
        """Return the teacher's cell of so many DDIM steps; by default the reference."""
        if steps is None and self.reference is None:
            return self.cells.longest(TEACHER, w)
        line = self.reference if steps is None else Line(TEACHER, DDIM, steps)
        return None if line is None else self.cells.get(line, w)

    def student(self, w: float) -> Cell | None:
        """Return the cell of the headline's student, which may have any name."""
        return None if self.knob is None else self.cells.longest(self.knob.name, w)
