"""The report: self-contained, one row per cell, and no statement that its rows contradict."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewstep.distill.plan import STAGE_ONE, Plan, Stage
from fewstep.measure.cell import DDIM, Cell, Cells, Line
from fewstep.metrics import Figures
from fewstep.recipes.wanted import shown_names
from fewstep.show.report import KnobCheck, SheetRow, Study, render, write_report
from fewstep.show.sheet import contact_sheet, png, to_pixels
from fewstep.show.weak import Warned

KEYS = {
    *("model", "sampler", "steps", "evaluations", "w", "fd_digits", "kd_digits", "precision"),
    *("recall", "score", "accuracy", "variance", "nearest", "rms_to_teacher", "fd_to_teacher"),
    "seconds_per_image",
}


def cell(model: str, steps: int, w: float, fd: float, sampler: str = DDIM) -> Cell:
    evaluations = (2 if model == "teacher" else 1) * steps
    figures = Figures(
        "fd_digits",
        fd,
        score=8.0,
        accuracy=0.99,
        variance=7.0,
        nearest=0.25,
        rms_to_teacher=0.0 if steps == 256 else 0.1 / steps,
        fd_to_teacher=0.03 if steps == 256 else 0.5 / steps,
    )
    return Cell(model, sampler, steps, w, evaluations, figures, 1e-3 * evaluations)


def changed(made: Study, change: Callable[[Cell], Cell]) -> Study:
    return replace(made, cells=Cells(change(cell) for cell in made.cells))


def study(ws: tuple[float, ...] = (0.0, 1.0), stochastic: float | None = 2.5) -> Study:
    real = Figures("fd_digits", 0.9, score=8.0, accuracy=0.99, variance=7.0, nearest=0.25)
    cells = [Cell("held-out", None, None, None, 0, real)]
    for w in ws:
        cells += [cell("teacher", n, w, fd) for n, fd in ((256, 1.0), (4, 2.0), (1, 9.0))]
        cells += [cell("stage-one", 32, w, 1.1), cell("student-4", 4, w, 1.5)]
        if stochastic is not None:
            cells.append(cell("student-4", 4, w, stochastic, "stochastic"))
    images = torch.rand(5, 1, 8, 8) * 2 - 1
    return Study(
        title="a <study>",
        features="digits",
        cells=Cells(cells),
        sheets={w: [SheetRow("teacher & co", images), SheetRow("student-4", images)] for w in ws},
        knob=KnobCheck("student-4", list(ws), [[abs(a - b) + 0.1 for b in ws] for a in ws]),
        losses={"teacher": [(25, 0.5), (50, 0.4)], "student-4": []},
        facts={"device": "a test", "samples per cell": "40"},
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
    assert data["rows"] == given.cells.rows
    assert all(set(r) == KEYS for r in data["rows"])
    assert data["knob"]["matrix"] == given.knob.matrix
    assert data["losses"]["teacher"] == [[25, 0.5], [50, 0.4]]


def test_the_headline_is_computed_from_the_rows() -> None:
    page = render(study())
    assert "<b>4 network evaluations</b>; its teacher used <b>512</b>" in page
    assert "<b>1.50</b> against the teacher's 1.00" in page
    assert "2.00 for the teacher's own 4 DDIM steps (8 evaluations)" in page
    assert "<b>128 times faster</b>" in page
    assert "the distance between two sets of its samples: 0.03 at w = 1." in page


def test_the_distance_to_the_teachers_samples_may_be_left_out() -> None:
    left = changed(study(), lambda c: replace(c, figures=replace(c.figures, fd_to_teacher=None)))
    pages = [render(made) for made in (study(), left)]
    assert ["<figcaption>fd_to_teacher at w = 1" in page for page in pages] == [True, False]
    assert "two sets of its samples" not in pages[1]
    assert pages[0].count("<svg") == pages[1].count("<svg") + 1


def test_the_reference_may_be_of_another_sampler() -> None:
    by_solver = [cell("teacher", 25, w, 0.9, "unipc") for w in (0.0, 1.0)]
    cells = Cells([*study().cells, *by_solver])
    page = render(replace(study(), cells=cells, reference=Line("teacher", "unipc", 25)))
    assert "its teacher used <b>50</b>" in page
    assert "2.00 for the teacher's own 4 DDIM steps" in page


def test_one_student_is_shown_over_w() -> None:
    assert "The guidance weight of one student" not in render(study())
    rows = [SheetRow(f"w = {w:g}", torch.zeros(3, 1, 8, 8)) for w in (0.0, 0.5, 1.0)]
    page = render(replace(study(), strip=rows))
    assert "The guidance weight of one student" in page
    assert "w = 0.5</th>" in page


def test_a_warning_stands_below_the_plot_that_it_is_about() -> None:
    page = render(replace(study(), warnings=[Warned("This is rough.", ("score",))]))
    above, below = page.split("Does the student follow w?")
    assert "This is rough." in above.split("Score against distance")[1]
    assert "This is rough." in below  # and in the list below the table


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


NASTY = "<img src=x onerror=alert(1)>"


def test_names_are_text_wherever_they_stand(tmp_path: Path) -> None:
    """Of the student, of features, in facts, warnings, notes and reasons."""
    made = changed(
        study(),
        lambda c: replace(
            c,
            model=NASTY if c.model == "student-4" else c.model,
            figures=replace(c.figures, fd_name=f"fd_{NASTY}"),
        ),
    )
    assert made.knob is not None
    made = replace(
        made,
        title=NASTY,
        features=NASTY,
        knob=made.knob._replace(name=NASTY),
        sheets={1.0: [SheetRow(NASTY, torch.zeros(2, 1, 4, 4))]},
        losses={NASTY: [(1, 0.5)]},
        facts={NASTY: NASTY},
        warnings=[Warned(NASTY, ("model",), (0,))],
        missing=[NASTY],
        notes=[NASTY],
    )
    page = write_report(tmp_path, made).read_text()
    assert "<img src=x" not in page
    assert page.count("&lt;img src=x") > 10
    assert "<b>4 network evaluations</b>" in page  # the student was found under that name


def test_a_student_of_any_name_and_steps_is_the_one_of_the_headline() -> None:
    def mine(c: Cell) -> Cell:
        return replace(c, model="mine", steps=3, evaluations=3) if c.model == "student-4" else c

    made = changed(study(stochastic=2.5), mine)
    page = render(replace(made, knob=KnobCheck("mine", [0.0, 1.0], [[0.1, 0.2], [0.2, 0.1]])))
    assert "<b>3 network evaluations</b>" in page
    assert "stochastic sampler at 3 steps was worse here" in page


def test_a_page_of_nothing_but_reasons(tmp_path: Path) -> None:
    """No student, no figure, no loss, no image."""
    made = study()
    nothing = Figures("fd_digits")
    made = changed(made, lambda c: replace(c, figures=nothing, seconds_per_image=None))
    lost = "fd_digits (every row): The images are infinite or not a number."
    empty = replace(
        made,
        sheets={w: [SheetRow("teacher", torch.zeros(0, 1, 8, 8))] for w in (0.0, 1.0)},
        knob=None,
        losses={"teacher": []},
        missing=[lost],
    )
    page = write_report(tmp_path, empty).read_text()
    assert "no deterministic few-step student" in page
    assert "<svg" not in page
    assert "None: no model was trained in this run" in page
    assert page.count("<span>none</span></td>") > len(made.cells)
    assert lost in page
    known = replace(empty, knob=KnobCheck("student-4", [0.0, 1.0], [[None, None], [None, 0.5]]))
    assert "so it is in 1 of 2 rows" in render(known)


def test_the_json_is_json_whatever_a_figure_is(tmp_path: Path) -> None:
    made = changed(study(), lambda c: replace(c, figures=replace(c.figures, fd=math.nan)))
    write_report(tmp_path, replace(made, losses={"teacher": [(1, math.inf)]}))
    data = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert data["rows"][1]["fd_digits"] is None
    assert data["losses"]["teacher"] == [[1, None]]


def test_marks_stand_beside_the_figures_that_a_warning_is_about() -> None:
    warned = [Warned("All are rough.", ("fd_digits",)), Warned("This is worse.", ("score",), (1,))]
    page = render(replace(study(), warnings=warned, notes=["A note."]))
    assert "fd digits<sup>1</sup></th>" in page
    assert page.count("8<sup>2</sup></span></td>") == 1
    for line in ("All are rough.", "This is worse.", "A note."):
        assert f"<li>{line}</li>" in page


@pytest.mark.parametrize(
    ("stages", "shown"),
    [
        ([("student-4-stochastic", 4, 2)], ["student-4"]),
        ([("student-4", 4, 1), ("student-4-stochastic", 4, 2)], ["student-4", "student-4"]),
        ([("a", 4, 1), ("a-stochastic", 4, 1)], ["a", "a-stochastic"]),
        ([("a", 4, 2), ("a-stochastic", 4, 2)], ["a", "a-stochastic"]),
        ([("student-4", 4, 2), ("student-4-stochastic", 4, 2)],
         ["student-4", "student-4-stochastic"]),
    ],
)  # fmt: skip
def test_two_stages_never_share_a_row(stages: list[tuple[str, int, int]], shown: list[str]) -> None:
    made = [Stage(n, STAGE_ONE, updates=1, steps=k, stride=s) for n, k, s in stages]
    assert list(shown_names(Plan(tuple(made))).values()) == shown
    rows = [(name, stage.sampler) for name, stage in zip(shown, made, strict=True)]
    assert len(set(rows)) == len(rows)
