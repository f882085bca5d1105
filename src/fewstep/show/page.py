"""The report's page: a study as one HTML text."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from typing import Any

from fewstep.measure.cell import Cell
from fewstep.metrics import RMS
from fewstep.show.escape import in_html
from fewstep.show.page_style import page
from fewstep.show.page_text import headline, limits
from fewstep.show.plots import against_evaluations, loss_curves, score_against_distance
from fewstep.show.sheet import contact_sheet, png
from fewstep.show.study_data import KnobCheck, SheetRow, Study
from fewstep.show.weak import marks_of


def render(study: Study) -> str:
    """Return the page: one HTML text that refers to nothing outside itself."""
    w = study.main_w
    fd = in_html(study.fd)
    body = [
        f"<h1>{in_html(study.title)}</h1>",
        headline(study, w),
        _facts(study.facts),
        _list(study.notes),
        "<h2>The same noise in every model</h2>",
        "<p>Each column starts from the same noise and the same condition. Rows differ in the "
        "model and in its number of steps.</p>",
        _sheets(study, w),
        "<h2>Distance against evaluations</h2>",
        f"<p>Left: {fd}, the Fréchet distance of the samples to the training images. Right: the "
        "root mean square distance, pixel by pixel, of each sample to the many-step teacher's "
        "sample from the same noise; pixels range from −1 to 1.</p>",
        *(_distance_plots(study, v) for v in sorted({w, max(study.cells.ws)})),
        "<h2>Score against distance, over w</h2>",
        "<p>Each curve connects the values of w in the table: more guidance gives more certain "
        "classes, at a larger distance from the data.</p>",
        _figure(
            score_against_distance(study.cells, study.roles),
            f"no model has both a class score and a {study.fd}",
        ),
        "<h2>Does the student follow w?</h2>",
        _knob(study.knob),
        "<h2>Training</h2>",
        _figure(loss_curves(study.losses, study.roles), "no model was trained in this run"),
        "<h2>All cells</h2>",
        _table(study),
        _below_table(study),
        "<h2>How to read these figures</h2>",
        _list(limits(study), "ul"),
    ]
    return page(study.title, "\n".join(part for part in body if part))


def _facts(facts: dict[str, str]) -> str:
    items = "".join(
        f"<div><dt>{in_html(k)}</dt><dd>{in_html(v)}</dd></div>" for k, v in facts.items()
    )
    return f"<dl>{items}</dl>"


def _list(lines: Iterable[str], kind: str = "ul", mark: str = "") -> str:
    items = "".join(f"<li>{in_html(line)}</li>" for line in lines)
    return f"<{kind}{mark}>{items}</{kind}>" if items else ""


def _figure(svg: str, otherwise: str) -> str:
    return f"<figure>{svg}</figure>" if svg else f"<p>None: {in_html(otherwise)}.</p>"


def _sheets(study: Study, shown: float) -> str:
    out = []
    for w, rows in study.sheets.items():
        lines = "".join(
            f"<tr><th scope=row>{in_html(r.label)}</th><td>{_image(r)}</td></tr>" for r in rows
        )
        opened = " open" if w == shown else ""
        out.append(
            f"<details{opened}><summary>w = {w:g}</summary>"
            f"<table class=sheet>{lines}</table></details>"
        )
    return "\n".join(out)


def _image(row: SheetRow) -> str:
    if not len(row.images):
        return "none: the images are infinite or not a number"
    sheet = contact_sheet(row.images, len(row.images), scale=4)
    data = base64.b64encode(png(sheet)).decode()
    return f'<img alt="{in_html(row.label)}" src="data:image/png;base64,{data}">'


def _distance_plots(study: Study, w: float) -> str:
    fd = against_evaluations(study.cells, study.fd, study.fd, w, study.roles)
    rms = against_evaluations(study.cells, RMS, "paired distance", w, study.roles)
    left = _figure(fd, f"no cell has a {study.fd} at w = {w:g}")
    right = _figure(rms, f"no cell has a paired distance above 0 at w = {w:g}")
    return f"<div class=pair>{left}{right}</div>"


def _knob(knob: KnobCheck | None) -> str:
    if knob is None:
        return "<p>None: there is no deterministic few-step student.</p>"
    known = [v for row in knob.matrix for v in row if v is not None]
    if not known:
        return "<p>None: the images of the student or the teacher are not finite.</p>"
    head = "".join(f"<th scope=col>teacher, w = {w:g}</th>" for w in knob.ws)
    lines, right, name = [], 0, in_html(knob.name)
    for i, (w, values) in enumerate(zip(knob.ws, knob.matrix, strict=True)):
        smallest = min((v for v in values if v is not None), default=None)
        right += smallest is not None and values[i] == smallest
        cells = "".join(_heat(v, v == smallest, min(known), max(known)) for v in values)
        lines.append(f"<tr><th scope=row>{name}, w = {w:g}</th>{cells}</tr>")
    return (
        f"<p>Paired distance of {name} at each w to the many-step teacher at each w, from the same "
        "noise. Where the student follows w, the smallest value of each row is on the diagonal, "
        f"and so it is in {right} of {len(knob.ws)} rows.</p>"
        "<div class=wide><table class=heat><tr><td></td>"
        f"{head}</tr>{''.join(lines)}</table></div>"
    )


def _heat(value: float | None, smallest: bool, low: float, high: float) -> str:
    if value is None:
        return "<td>none</td>"
    shade = 1 - (value - low) / max(high - low, 1e-12)
    text = f"<b>{value:.3f}</b>" if smallest else f"{value:.3f}"
    return f'<td style="background:rgba(213,94,0,{0.45 * shade:.2f})">{text}</td>'


def _table(study: Study) -> str:
    cells = list(study.cells)
    keys = ["w", *(k for k in cells[0].row if k not in ("w", "seconds_per_image"))]
    marks = marks_of(study.warnings)
    head = "".join(
        f"<th scope=col>{in_html(k.replace('_', ' '))}{_marked(marks.get((None, k)))}</th>"
        for k in [*keys, "ms per image", "speed-up"]
    )

    def place(i: int) -> tuple[float, int]:
        w = cells[i].w
        return -math.inf if w is None else w, -cells[i].evaluations

    lines = []
    for i in sorted(range(len(cells)), key=place):
        row = cells[i].row
        texts = [f"{_number(row[k])}{_marked(marks.get((i, k)))}" for k in keys]
        texts += [_number(c) for c in _speed(study, cells[i])]
        lines.append("<tr>" + "".join(f"<td>{text}</td>" for text in texts) + "</tr>")
    return f"<div class=wide><table class=cells><tr>{head}</tr>{''.join(lines)}</table></div>"


def _marked(numbers: list[int] | None) -> str:
    return f"<sup>{','.join(map(str, numbers))}</sup>" if numbers else ""


def _below_table(study: Study) -> str:
    parts = []
    if study.warnings:
        sentences = (warned.sentence for warned in study.warnings)
        parts.append("<h3>Warnings</h3>" + _list(sentences, "ol", " class=warnings"))
    if study.missing:
        parts.append("<h3>Not measured</h3>" + _list(study.missing))
    return "\n".join(parts)


def _speed(study: Study, cell: Cell) -> tuple[float | None, str | None]:
    seconds = cell.seconds_per_image
    if not seconds:
        return None, None
    teacher = None if cell.w is None else study.teacher(cell.w)
    theirs = None if teacher is None else teacher.seconds_per_image
    return 1000 * seconds, None if theirs is None else f"{theirs / seconds:.1f}×"


def _number(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.3g}" if isinstance(value, float) else in_html(value)
