"""The report's page: a study as one HTML text."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from typing import Any

from fewstep.measure.cell import DDIM, Cell
from fewstep.metrics import FD_TO_TEACHER, RMS
from fewstep.show.escape import in_html
from fewstep.show.page_style import page
from fewstep.show.page_text import headline, limits
from fewstep.show.plots import against_evaluations, loss_curves, score_against_distance
from fewstep.show.sheet import contact_sheet, png
from fewstep.show.study_data import COLUMNS, KnobCheck, SheetRow, Study
from fewstep.show.weak import marks_of

SHORT = {DDIM: "DDIM"}  # names of samplers in the table
LARGE = 96  # pixels; smaller images are enlarged to it
OF_SHEETS = (
    "Each column starts from the same noise and the same condition; rows differ in the model and "
    "its number of steps."
)
OF_SCORE = (
    "Each curve connects the values of w: more guidance makes the classes more certain, and takes "
    "the samples further from the data."
)
OF_LOSSES = "The training loss of each model: as it was read (faint), and smoothed."


def render(study: Study) -> str:
    """Return the page: one HTML text that refers to nothing outside itself."""
    w = study.main_w
    score = score_against_distance(study.cells, study.roles)
    body = [
        f"<h1>{in_html(study.title)}</h1>",
        headline(study, w),
        _facts(study.facts),
        _list(study.notes),
        "<h2>The same noise in every model</h2>",
        _sheets(study, w),
        *_knob_strip(study),
        "<h2>Distance against evaluations</h2>",
        *(_distance_plots(study, v) for v in sorted({w, max(study.cells.ws)})),
        _warnings(study, study.fd, RMS, FD_TO_TEACHER),
        "<h2>Score against distance, over w</h2>",
        _figure(score, f"no model has both a class score and a {study.fd}", OF_SCORE),
        _warnings(study, "score"),
        "<h2>Does the student follow w?</h2>",
        _knob(study.knob),
        "<h2>Training</h2>",
        _figure(
            loss_curves(study.losses, study.roles), "no model was trained in this run", OF_LOSSES
        ),
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


def _figure(svg: str, otherwise: str, caption: str) -> str:
    if not svg:
        return f"<p>None: {in_html(otherwise)}.</p>"
    return f"<figure>{svg}<figcaption>{in_html(caption)}</figcaption></figure>"


def _sheets(study: Study, shown: float) -> str:
    out = []
    for w, rows in study.sheets.items():
        opened = " open" if w == shown else ""
        out.append(f"<details{opened}><summary>w = {w:g}</summary>{_rows(rows)}</details>")
    return "\n".join([f"<p>{OF_SHEETS}</p>", *out])


def _knob_strip(study: Study) -> list[str]:
    if study.knob is None or not study.strip:
        return []
    name = in_html(study.knob.name)
    caption = f"{name} from the same noise at every w: each row is one value of the same input."
    return ["<h2>The guidance weight of one student</h2>", f"<p>{caption}</p>", _rows(study.strip)]


def _rows(rows: Sequence[SheetRow]) -> str:
    lines = "".join(
        f"<tr><th scope=row>{in_html(r.label)}</th><td>{_image(r)}</td></tr>" for r in rows
    )
    return f"<table class=sheet>{lines}</table>"


def _image(row: SheetRow) -> str:
    images = row.images[:COLUMNS]
    if not len(images):
        return "none: the images are infinite or not a number"
    side = max(images.shape[-2:])
    sheet = contact_sheet(images, len(images), scale=max(1, LARGE // side))
    data = base64.b64encode(png(sheet)).decode()
    return f'<img alt="{in_html(row.label)}" src="data:image/png;base64,{data}">'


def _distance_plots(study: Study, w: float) -> str:
    fd = against_evaluations(study.cells, study.fd, study.fd, w, study.roles)
    rms = against_evaluations(study.cells, RMS, "paired distance", w, study.roles)
    left = _figure(
        fd,
        f"no cell has a {study.fd} at w = {w:g}",
        f"{study.fd} at w = {w:g}: the Fréchet distance of the samples to the training images.",
    )
    right = _figure(
        rms,
        f"no cell has a paired distance above 0 at w = {w:g}",
        f"Paired distance at w = {w:g}: root mean square difference per pixel, on a scale from −1 "
        "to 1, from the many-step teacher's sample of the same noise.",
    )
    apart = against_evaluations(study.cells, FD_TO_TEACHER, FD_TO_TEACHER, w, study.roles)
    below = ""
    if apart:
        below = _figure(
            apart,
            "",
            f"{FD_TO_TEACHER} at w = {w:g}: the same distance to the many-step teacher's samples "
            "of another seed.",
        )
    return f"<div class=pair>{left}{right}{below}</div>"


def _warnings(study: Study, *keys: str) -> str:
    """Return the warnings about figures that a plot shows, in full."""
    about = (w.sentence for w in study.warnings if set(keys) & set(w.keys))
    items = "".join(f"<li>{in_html(sentence)}</li>" for sentence in about)
    return f"<ul class=warning>{items}</ul>" if items else ""


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
    names = [in_html(k.replace("_", " ")) for k in [*keys, "ms per image", "speed-up"]]
    head = "".join(
        f"<th scope=col>{name}{_marked(marks.get((None, k)))}</th>"
        for name, k in zip(names, [*keys, "", ""], strict=True)
    )

    def place(i: int) -> tuple[float, int]:
        w = cells[i].w
        return -math.inf if w is None else w, -cells[i].evaluations

    lines = []
    for i in sorted(range(len(cells)), key=place):
        row = cells[i].row
        texts = [f"{_number(row[k])}{_marked(marks.get((i, k)))}" for k in keys]
        texts += [_number(c) for c in _speed(study, cells[i])]
        lines.append("<tr>" + "".join(map(_cell, names, texts)) + "</tr>")
    return f"<div class=wide><table class=cells><tr>{head}</tr>{''.join(lines)}</table></div>"


def _cell(name: str, text: str) -> str:
    # On a narrow screen the name stands beside each figure, and the head is not shown.
    return f'<td data-name="{name}"><span>{text}</span></td>'


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
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    return in_html(SHORT.get(value, value))
