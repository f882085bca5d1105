"""A study's report: one self-contained page, and the same figures as JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from fewstep.atomic import atomic_write
from fewstep.show.page import render
from fewstep.show.study_data import KnobCheck, SheetRow, Study


def write_report(folder: Path, study: Study) -> Path:
    """Write report.json and report.html into the folder, each complete; return the page.

    report.json: {"title", "facts", "rows", "knob", "losses", "warnings", "missing", "notes"}; a
    row has the keys model, sampler, steps, evaluations, w, fd_<features>, kd_<features>,
    precision, recall, score, accuracy, variance, nearest, rms_to_teacher, fd_to_teacher and
    seconds_per_image, with null where there is no such figure. "missing" has the reasons.
    """
    data = {
        "format": 1,
        "title": study.title,
        "facts": study.facts,
        "rows": study.cells.rows,
        "knob": None if study.knob is None else study.knob._asdict(),
        "losses": study.losses,
        "warnings": [warned.sentence for warned in study.warnings],
        "missing": study.missing,
        "notes": study.notes,
    }
    text = json.dumps(_plain(data), indent=1, allow_nan=False) + "\n"
    atomic_write(folder / "report.json", text.encode())
    path = folder / "report.html"
    atomic_write(path, render(study).encode())
    return path


def _plain(data: Any) -> Any:
    """Return JSON data with None for NaN and infinity, which JSON does not have."""
    if isinstance(data, dict):
        return {k: _plain(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(v) for v in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


__all__ = ["KnobCheck", "SheetRow", "Study", "render", "write_report"]
