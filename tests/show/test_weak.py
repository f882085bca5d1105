"""Every rule warns about its own weak figure, marks it, and is silent about a strong one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fewstep.measure.cell import DDIM, STOCHASTIC, Cell, Cells
from fewstep.metrics import Figures
from fewstep.show.figures import Remarks, markdown_page, remark_lines, terminal_page
from fewstep.show.weak import RULES, Measurements, marks_of, reasons_of, warnings_of

STRONG_FIGURES = Figures("fd_x", 2.0, 0.1, 0.9, 0.5, 8.0, 0.9, 7.0, 0.2, 0.1)


def cell(model: str, sampler: str = DDIM, steps: int = 4, **figures: Any) -> Cell:
    return Cell(model, sampler, steps, 1.0, 4, replace(STRONG_FIGURES, **figures), 0.1)


HELD_OUT = Cell("held-out", None, None, None, 0, replace(STRONG_FIGURES, rms_to_teacher=None))
TEACHER = cell("teacher", steps=256, fd=1.0, rms_to_teacher=0.0)
STRONG = Measurements(
    Cells([HELD_OUT, TEACHER, cell("student-4")]), [TEACHER], 2000, 64, 5000, 0.9, 0.1, 300, True
)


def test_strong_figures_have_no_warning() -> None:
    assert warnings_of(STRONG) == []
    assert warnings_of(replace(STRONG, cells=Cells([]))) == []


WEAK_TEACHER = cell("teacher", precision=0.2, accuracy=0.3)


@pytest.mark.parametrize(
    ("change", "says", "marked"),
    [
        ({"samples": 999}, "999 samples per cell are few", (None, "fd_x")),
        ({"dimensions": 2048}, "at least 20,480", (None, "recall")),
        ({"training_images": 60}, "only 60 training images", (None, "kd_x")),
        ({"held_out": 12}, "Only 12 images are held out", (0, "model")),
        ({"accuracy": 0.4}, "recognises 40%", (None, "score")),
        ({"accuracy": None}, "is unknown", (None, "accuracy")),
        ({"task": "rotations"}, "how far an image was turned", (None, "fd_x")),
        (
            {"teachers": [cell("teacher", steps=64, fd_to_teacher=0.0312)]},
            "0.0312 at w = 1",
            (None, "fd_to_teacher"),
        ),
        ({"teachers": [WEAK_TEACHER]}, "20% of its samples", (None, "rms_to_teacher")),
        ({"teachers": [cell("teacher", fd=9.0)]}, "A lower fd_x", (2, "fd_x")),
        ({"cells": Cells([cell("s", STOCHASTIC)])}, "not paired", (0, "rms_to_teacher")),
    ],
)
def test_a_weak_figure_is_marked_and_explained(
    change: dict[str, Any], says: str, marked: tuple[int | None, str]
) -> None:
    seen = replace(STRONG, **change)
    warned = warnings_of(seen)
    (number,) = [i for i, w in enumerate(warned, 1) if says in w.sentence]
    assert number in marks_of(warned)[marked]
    remarks = Remarks(warned, ["variance (held-out): No classes."])
    for text in (terminal_page(seen.cells, remarks), markdown_page(seen.cells, remarks)):
        assert f"({number}" in text or f", {number})" in text
        assert warned[number - 1].sentence[:30] in text
        assert "No classes." in text
    assert len(remark_lines(remarks)) == len(warned) + 1


def test_each_rule_can_warn() -> None:
    cells = Cells([HELD_OUT, cell("s", STOCHASTIC, fd=0.1)])
    teacher = replace(WEAK_TEACHER, figures=replace(WEAK_TEACHER.figures, fd_to_teacher=0.1))
    weak = Measurements(cells, [teacher], 8, 64, 60, 0.3, 0.25, 3, True, "rotations")
    unknown = replace(weak, accuracy=None)
    for rule in RULES:
        assert list(rule(weak)) or list(rule(unknown)), rule.__name__


def test_reasons_name_figures_and_rows() -> None:
    both = replace(
        cell("a", variance=None, nearest=None),
        missing={"variance": "no classes", "nearest": "too many images."},
    )
    one = replace(cell("b", variance=None), missing={"variance": "no classes"})
    assert reasons_of([both, one]) == [
        "variance (every row): No classes.",
        "nearest (a, deterministic, 4 steps): Too many images.",
    ]
    assert reasons_of([replace(cell("a"), missing={"variance": "it is there, though"})]) == []
