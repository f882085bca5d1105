"""Reports made for a test: every figure is a known function of the cell."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from studies.cells import Line

Figures = Callable[[Line, float], dict[str, Any]]


def rows(lines: Sequence[Line], ws: Sequence[float], figures: Figures) -> list[dict[str, Any]]:
    """A row for each line and w; guided models need two evaluations per step, one at w = 0."""

    def evaluations(line: Line, w: float) -> int:
        return (2 if line.model.startswith(("teacher", "pair")) and w else 1) * line.steps

    return [
        {**line._asdict(), "evaluations": evaluations(line, w), "w": w, **figures(line, w)}
        for line in lines
        for w in ws
    ]


def write_report(folder: Path, cells: Sequence[dict[str, Any]], **more: Any) -> Path:
    """Write folder/report.json with these rows."""
    data = {"rows": list(cells), "facts": {"device": "a test"}, "knob": {"matrix": [[0.0]]}}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.json"
    path.write_text(json.dumps({**data, **more}))
    return path
