"""Every rule warns about its own weak figure, marks it, and is silent about a strong one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fewstep.show.figures import Remarks, markdown_page, remark_lines, terminal_page
from fewstep.show.weak import RULES, Table, marks_of, reasons_of, warnings_of


def row(model: str, **figures: Any) -> dict[str, Any]:
    return {
        "model": model, "sampler": "deterministic", "steps": 4, "evaluations": 4, "w": 1.0,
        "fd_x": 2.0, "kd_x": 0.1, "precision": 0.9, "recall": 0.5, "score": 8.0, "accuracy": 0.9,
        "variance": 7.0, "nearest": 0.2, "rms_to_teacher": 0.1, "seconds_per_image": 0.1, **figures,
    }  # fmt: skip


HELD_OUT = row("held-out", sampler=None, steps=None, w=None, evaluations=0, rms_to_teacher=None)
TEACHER = row("teacher", steps=256, fd_x=1.0, rms_to_teacher=0.0)
STRONG = Table(
    [HELD_OUT, TEACHER, row("student-4")], [TEACHER], 2000, 64, 5000, 0.9, 0.1, 300, True
)


def test_strong_figures_have_no_warning() -> None:
    assert warnings_of(STRONG) == []
    assert warnings_of(replace(STRONG, rows=[])) == []


WEAK_TEACHER = row("teacher", precision=0.2, accuracy=0.3)


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
        ({"teachers": [WEAK_TEACHER]}, "20% of its samples", (None, "rms_to_teacher")),
        ({"teachers": [row("teacher", fd_x=9.0)]}, "A lower fd_x", (2, "fd_x")),
        ({"rows": [row("s", sampler="stochastic")]}, "not paired", (0, "rms_to_teacher")),
    ],
)
def test_a_weak_figure_is_marked_and_explained(
    change: dict[str, Any], says: str, marked: tuple[int | None, str]
) -> None:
    table = replace(STRONG, **change)
    warned = warnings_of(table)
    (number,) = [i for i, w in enumerate(warned, 1) if says in w.sentence]
    assert number in marks_of(warned)[marked]
    remarks = Remarks(warned, ["variance (held-out): No classes."])
    for text in (terminal_page(table.rows, remarks), markdown_page(table.rows, remarks)):
        assert f"({number}" in text or f", {number})" in text
        assert warned[number - 1].sentence[:30] in text
        assert "No classes." in text
    assert len(remark_lines(remarks)) == len(warned) + 1


def test_each_rule_can_warn() -> None:
    weak = Table(
        [HELD_OUT, row("s", sampler="stochastic", fd_x=0.1)], [WEAK_TEACHER], 8, 64, 60, 0.3, 0.25,
        3, True, "rotations",
    )  # fmt: skip
    unknown = replace(weak, accuracy=None)
    for rule in RULES:
        assert list(rule(weak)) or list(rule(unknown)), rule.__name__


def test_reasons_name_figures_and_rows() -> None:
    rows = [row("a", variance=None, nearest=None), row("b", variance=None)]
    lost = [{"variance": "no classes", "nearest": "too many images."}, {"variance": "no classes"}]
    assert reasons_of(rows, lost) == [
        "variance (every row): No classes.",
        "nearest (a, deterministic, 4 steps): Too many images.",
    ]
    assert reasons_of([row("a")], [{"variance": "it is there, though"}]) == []
