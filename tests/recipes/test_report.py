"""The report: self-contained, one row a cell, and no statement that its rows contradict."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.recipes.report import KnobCheck, SheetRow, Study, render, write_report
from fewstep.recipes.sheet import contact_sheet, png, to_pixels

KEYS = {
    *("model", "sampler", "steps", "evaluations", "w", "fd_digits", "score", "accuracy"),
    *("variance", "nearest", "rms_to_teacher", "seconds_per_image"),
}


def row(
    model: str, steps: int, w: float, fd: float, sampler: str = "deterministic"
) -> dict[str, Any]:
    passes = 2 if model == "teacher" else 1
    return {
        "model": model,
        "sampler": sampler,
        "steps": steps,
        "evaluations": passes * steps,
        "w": w,
        "fd_digits": fd,
        "score": 8.0,
        "accuracy": 0.99,
        "variance": 7.0,
        "nearest": 0.25,
        "rms_to_teacher": 0.0 if steps in (0, 256) else 0.1 / steps,
        "seconds_per_image": 1e-3 * steps * passes,
    }


def study(ws: tuple[float, ...] = (0.0, 1.0), stochastic: float | None = 2.5) -> Study:
    rows = [row("held-out", 0, 0.0, 0.9)]
    rows[0].update(sampler=None, steps=None, w=None, rms_to_teacher=None, seconds_per_image=None)
    for w in ws:
        rows += [row("teacher", 256, w, 1.0), row("teacher", 4, w, 2.0), row("teacher", 1, w, 9.0)]
        rows += [row("stage-one", 32, w, 1.1), row("student-4", 4, w, 1.5)]
        if stochastic is not None:
            rows.append(row("student-4", 4, w, stochastic, "stochastic"))
    images = torch.rand(5, 1, 8, 8) * 2 - 1
    return Study(
        title="a <study>",
        features="digits",
        rows=rows,
        sheets={w: [SheetRow("teacher & co", images), SheetRow("student-4", images)] for w in ws},
        knob=KnobCheck("student-4", list(ws), [[abs(a - b) + 0.1 for b in ws] for a in ws]),
        losses={"teacher": [(25, 0.5), (50, 0.4)], "student-4": []},
        facts={"device": "a test", "samples a cell": "40"},
    )


@pytest.mark.parametrize("ws", [(0.0, 1.0), (1.0,)])
@pytest.mark.parametrize("stochastic", [None, 2.5, 1.2])
def test_the_page_needs_nothing_but_itself(
    tmp_path: Path, ws: tuple[float, ...], stochastic: float | None
) -> None:
    page = write_report(tmp_path, study(ws, stochastic)).read_text()
    outside = re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', page)
    assert outside == []
    assert page.count("<svg") >= 4
    assert page.count("data:image/png") == 2 * len(ws)
    assert "a &lt;study&gt;" in page
    assert "teacher &amp; co" in page
    if stochastic is not None:
        assert f"4 steps was {'worse' if stochastic > 1.5 else 'better'} here" in page
    else:
        assert "stochastic sampler at 4 steps" not in page


def test_the_json_has_a_row_a_cell_with_the_agreed_keys(tmp_path: Path) -> None:
    given = study()
    write_report(tmp_path, given)
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["rows"] == given.rows
    assert all(set(r) == KEYS for r in data["rows"])
    assert data["knob"]["matrix"] == given.knob.matrix
    assert data["losses"]["teacher"] == [[25, 0.5], [50, 0.4]]


def test_the_headline_is_computed_from_the_rows() -> None:
    page = render(study())
    assert "<b>4 network evaluations</b>; its teacher used <b>512</b>" in page
    assert "<b>1.50</b> against the teacher's 1.00" in page
    assert "2.00 for the teacher's own 4 DDIM steps (8 evaluations)" in page
    assert "<b>128 times faster</b>" in page


def test_the_matrix_marks_the_smallest_of_each_row() -> None:
    page = render(study())
    assert "so it is in 2 of 2 rows" in page
    assert page.count("<b>0.100</b>") == 2


def test_sheets_place_images_in_rows() -> None:
    images = torch.stack([torch.full((1, 2, 2), v) for v in (-1.0, 0.0, 1.0)])
    assert to_pixels(images)[:, 0, 0].tolist() == [0, 128, 255]
    sheet = contact_sheet(images, columns=2, scale=3)
    assert sheet.size == (14, 14)
    assert sheet.getpixel((0, 0)) == 0
    assert sheet.getpixel((8, 0)) == 128
    colour = contact_sheet(torch.ones(1, 3, 2, 2), 1)
    assert (colour.mode, colour.size) == ("RGB", (2, 2))
    assert png(sheet, {"w": 2.0})[:4] == b"\x89PNG"
