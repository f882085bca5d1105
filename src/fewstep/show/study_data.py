"""What a report shows, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from fewstep.distill.plan import TEACHER
from fewstep.metrics import distance_key
from fewstep.show.weak import Warned

Row = dict[str, Any]


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
    """All that the report shows; see `write_report` for the rows' keys.

    Attributes:
        title: of the page.
        features: name of the features.
        rows: one per cell, held-out images included where there are any.
        sheets: for each w, the images of some models.
        knob: of the deterministic student whose steps are nearest to 4, which is the student of
            the headline; None where there is none.
        losses: of each training, (update, loss).
        facts: shown at the top.
        reference_steps: of the teacher's rows that the others are compared with; None takes those
            with most steps.
        warnings: about figures of the rows.
        missing: sentences, why figures are missing.
        notes: sentences, what was chosen for this report.
        roles: of the models, {name: role}, for the plots.
    """

    title: str
    features: str
    rows: list[Row]
    sheets: dict[float, list[SheetRow]]
    knob: KnobCheck | None
    losses: dict[str, list[tuple[int, float]]]
    facts: dict[str, str]
    reference_steps: int | None = None
    warnings: list[Warned] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    roles: Mapping[str, str] = field(default_factory=dict)

    @property
    def fd(self) -> str:
        """The key of the Fréchet distance, named after its features."""
        return distance_key(self.rows[0])

    @property
    def ws(self) -> list[float]:
        """The guidance weights of the rows."""
        return sorted({r["w"] for r in self.rows if r["w"] is not None})

    @property
    def main_w(self) -> float:
        """The w that is shown first: the one nearest to 1."""
        return min(self.ws, key=lambda w: abs(w - 1.0))

    def row(
        self, model: str, w: float, steps: int | None = None, sampler: str = "deterministic"
    ) -> Row | None:
        """Return the row of a cell; the one with most steps where steps is not given."""
        found = [
            r
            for r in self.rows
            if r["model"] == model
            and r["w"] == w
            and r["sampler"] == sampler
            and steps in (None, r["steps"])
        ]
        return max(found, key=lambda r: int(r["steps"]), default=None)

    def teacher(self, w: float, steps: int | None = None) -> Row | None:
        """Return a row of the teacher; by default that which the others are compared with."""
        return self.row(TEACHER, w, steps or self.reference_steps)

    def student(self, w: float) -> Row | None:
        """Return the row of the headline's student, which may have any name."""
        return None if self.knob is None else self.row(self.knob.name, w)
