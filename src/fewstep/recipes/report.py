"""A study's report: one self-contained page, and the same figures as JSON."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fewstep.atomic import atomic_write
from fewstep.metrics import distance_key
from fewstep.recipes.plots import against_evaluations, loss_curves, score_against_distance
from fewstep.recipes.sheet import contact_sheet, png

Row = dict[str, Any]


class SheetRow(NamedTuple):
    """One row of a sheet: images (n, C, H, W) in [-1, 1], from the same noise in every row."""

    label: str
    images: Tensor


class KnobCheck(NamedTuple):
    """matrix[i][j]: paired distance of the student at ws[i] to the teacher at ws[j]."""

    name: str
    ws: list[float]
    matrix: list[list[float]]


@dataclass(frozen=True)
class Study:
    """All that the report shows; see `write_report` for the rows' keys."""

    title: str
    features: str
    rows: list[Row]
    sheets: dict[float, list[SheetRow]]
    knob: KnobCheck
    losses: dict[str, list[tuple[int, float]]]
    facts: dict[str, str]

    @property
    def fd(self) -> str:
        """The key of the Fréchet distance, named after its features."""
        return distance_key(self.rows[0])

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


def write_report(folder: Path, study: Study) -> Path:
    """Write report.json and report.html into the folder, each whole; return the page.

    report.json: {"title", "facts", "rows", "knob", "losses"}; a row has the keys model, sampler,
    steps, evaluations, w, fd_<features>, kd_<features>, precision, recall, score, accuracy,
    variance, nearest, rms_to_teacher and seconds_per_image, with null where there is no such
    thing.
    """
    data = {
        "format": 1,
        "title": study.title,
        "facts": study.facts,
        "rows": study.rows,
        "knob": study.knob._asdict(),
        "losses": study.losses,
    }
    atomic_write(folder / "report.json", (json.dumps(data, indent=1) + "\n").encode())
    page = folder / "report.html"
    atomic_write(page, render(study).encode())
    return page


def render(study: Study) -> str:
    """Return the page: one HTML text that refers to nothing outside itself."""
    w = _main_w(study)
    body = [
        f"<h1>{html.escape(study.title)}</h1>",
        _headline(study, w),
        _facts(study.facts),
        "<h2>The same noise, through every model</h2>",
        "<p>Each column starts from one noise and asks for one class. Rows differ in the network "
        "and in how often it is evaluated.</p>",
        _sheets(study, w),
        "<h2>Distance against evaluations</h2>",
        f"<p>Left: {study.fd}, the Fréchet distance of the samples to the training images. Right: "
        "the root mean square distance, pixel by pixel, of each sample to what the many-step "
        "teacher makes of the same noise; pixels go from −1 to 1.</p>",
        *(_distance_plots(study, v) for v in sorted({w, max(study.knob.ws)})),
        "<h2>Score against distance, over w</h2>",
        "<p>Each curve goes through the w's of the table: guidance buys surer classes with "
        "distance from the data.</p>",
        f"<figure>{score_against_distance(study.rows, study.fd)}</figure>",
        "<h2>Is the knob live?</h2>",
        _knob(study.knob),
        "<h2>Training</h2>",
        f"<figure>{loss_curves(study.losses)}</figure>",
        "<h2>All cells</h2>",
        _table(study),
        "<h2>What these figures do not say</h2>",
        _limits(study),
    ]
    return PAGE.format(title=html.escape(study.title), style=STYLE, body="\n".join(body))


def _main_w(study: Study) -> float:
    return min(study.knob.ws, key=lambda w: abs(w - 1.0))


def _headline(study: Study, w: float) -> str:
    student, teacher = study.row("student-4", w), study.row("teacher", w)
    ddim = study.row("teacher", w, steps=4)
    if student is None or teacher is None:
        return ""
    text = (
        f"At w = {w:g} the student draws an image with <b>{student['evaluations']} network "
        f"evaluations</b>; its teacher used <b>{teacher['evaluations']}</b>. {study.fd}: "
        f"<b>{student[study.fd]:.2f}</b> against the teacher's {teacher[study.fd]:.2f}"
    )
    if ddim is not None and ddim is not teacher:
        text += (
            f", and {ddim[study.fd]:.2f} for the teacher's own {ddim['steps']} DDIM steps "
            f"({ddim['evaluations']} evaluations). Paired distance to the teacher's image: "
            f"<b>{student['rms_to_teacher']:.3f}</b>, against {ddim['rms_to_teacher']:.3f} for "
            f"those {ddim['steps']} steps"
        )
    faster = teacher["seconds_per_image"] / student["seconds_per_image"]
    return f"<p class=lead>{text}. Measured here, it is <b>{faster:.0f} times faster</b>.</p>"


def _facts(facts: dict[str, str]) -> str:
    items = "".join(
        f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts.items()
    )
    return f"<dl>{items}</dl>"


def _sheets(study: Study, shown: float) -> str:
    out = []
    for w, rows in study.sheets.items():
        lines = "".join(
            f"<tr><th scope=row>{html.escape(r.label)}</th><td>{_image(r)}</td></tr>" for r in rows
        )
        opened = " open" if w == shown else ""
        out.append(
            f"<details{opened}><summary>w = {w:g}</summary>"
            f"<table class=sheet>{lines}</table></details>"
        )
    return "\n".join(out)


def _image(row: SheetRow) -> str:
    sheet = contact_sheet(row.images, len(row.images), scale=4)
    data = base64.b64encode(png(sheet)).decode()
    return f'<img alt="{html.escape(row.label)}" src="data:image/png;base64,{data}">'


def _distance_plots(study: Study, w: float) -> str:
    fd = against_evaluations(study.rows, study.fd, study.fd, w)
    rms = against_evaluations(study.rows, "rms_to_teacher", "paired distance", w)
    return f"<div class=pair><figure>{fd}</figure><figure>{rms}</figure></div>"


def _knob(knob: KnobCheck) -> str:
    head = "".join(f"<th scope=col>teacher, w = {w:g}</th>" for w in knob.ws)
    low, high = min(map(min, knob.matrix)), max(map(max, knob.matrix))
    lines = []
    for w, values in zip(knob.ws, knob.matrix, strict=True):
        cells = "".join(_heat(v, v == min(values), low, high) for v in values)
        lines.append(f"<tr><th scope=row>{knob.name}, w = {w:g}</th>{cells}</tr>")
    right = sum(row.index(min(row)) == i for i, row in enumerate(knob.matrix))
    return (
        f"<p>Paired distance of {knob.name} at each w to the many-step teacher at each w, from the "
        "same noise. Where the knob works, the smallest of a row stands on the diagonal: so it is "
        f"in {right} of {len(knob.ws)} rows.</p><div class=wide><table class=heat><tr><td></td>"
        f"{head}</tr>{''.join(lines)}</table></div>"
    )


def _heat(value: float, smallest: bool, low: float, high: float) -> str:
    shade = 1 - (value - low) / max(high - low, 1e-12)
    text = f"<b>{value:.3f}</b>" if smallest else f"{value:.3f}"
    return f'<td style="background:rgba(213,94,0,{0.45 * shade:.2f})">{text}</td>'


def _table(study: Study) -> str:
    keys = [k for k in study.rows[0] if k not in ("w", "seconds_per_image")]
    keys = ["w", *keys]
    head = "".join(
        f"<th scope=col>{k.replace('_', ' ')}</th>" for k in [*keys, "ms an image", "speed-up"]
    )
    ordered = sorted(
        study.rows, key=lambda r: (-1 if r["w"] is None else r["w"], -r["evaluations"])
    )
    lines = [
        "<tr>"
        + "".join(f"<td>{_number(c)}</td>" for c in [*(r[k] for k in keys), *_speed(study, r)])
        + "</tr>"
        for r in ordered
    ]
    return f"<div class=wide><table class=cells><tr>{head}</tr>{''.join(lines)}</table></div>"


def _speed(study: Study, row: Row) -> tuple[float | None, str | None]:
    seconds = row["seconds_per_image"]
    teacher = None if row["w"] is None else study.row("teacher", row["w"])
    if seconds is None:
        return None, None
    ratio = None if teacher is None else f"{teacher['seconds_per_image'] / seconds:.1f}×"
    return 1000 * seconds, ratio


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else html.escape(str(value))


def _limits(study: Study) -> str:
    return "<ul>" + "".join(f"<li>{line}</li>" for line in _limit_lines(study)) + "</ul>"


def _limit_lines(study: Study) -> Iterable[str]:
    one = study.row("teacher", _main_w(study), steps=1)
    if one is not None and one["accuracy"] is not None:
        yield (
            f"Accuracy and score are sanity checks. One DDIM step of the teacher draws class "
            f"averages: accuracy {one['accuracy']:.3f}, score {one['score']:.2f}, with a "
            f"within-class variance of {one['variance']:.2f}."
        )
    count = study.facts.get("samples a cell", "the")
    yield (
        f"With {count} samples a cell, the noise of sampling moves a Fréchet distance by some "
        "per cent; the paired distance has less of it, since every cell starts from the same noise."
    )
    held = next((r for r in study.rows if r["model"] == "held-out"), None)
    if held is not None:
        yield (
            f"The held-out images score {study.fd} {held[study.fd]:.2f}. They are few, and the "
            "distance grows as a sample shrinks, so that is no floor for a cell."
        )
    yield from _compared(study)
    yield (
        "Times were taken in batches on the machine named above, once; the ratios within a table "
        "mean more than the times."
    )


def _compared(study: Study) -> Iterable[str]:
    w = _main_w(study)
    plain, noisy = study.row("student-4", w), study.row("student-4", w, sampler="stochastic")
    if plain is not None and noisy is not None:
        worse = noisy[study.fd] > plain[study.fd]
        yield (
            f"The stochastic sampler at 4 steps was {'worse' if worse else 'better'} here than the "
            f"deterministic one ({noisy[study.fd]:.2f} against {plain[study.fd]:.2f} at "
            f"w = {w:g}); its samples are not paired with the teacher's, so their paired distance "
            "says nothing."
        )
    better = _better_than_teacher(study)
    if better:
        yield (
            f"Where a student has a lower {study.fd} than its teacher (here at "
            f"{', '.join(better)}), compare the variance before believing it."
        )


def _better_than_teacher(study: Study) -> Sequence[str]:
    out = []
    for w in study.knob.ws:
        student, teacher = study.row("student-4", w), study.row("teacher", w)
        if student is not None and teacher is not None and student[study.fd] < teacher[study.fd]:
            out.append(f"w = {w:g}")
    return out


STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto;
  max-width: 1080px; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
.lead { font-size: 1.1rem; max-width: 50rem; } p, ul { max-width: 50rem; }
dl { display: flex; flex-wrap: wrap; gap: .4rem 2rem; font-size: .85rem; margin: 1rem 0; }
dt { color: #666; } dd { margin: 0; }
figure { margin: 0; max-width: 46rem; } figure svg { width: 100%; height: auto; display: block; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr));
  gap: 1rem; margin: 1rem 0; }
details { margin: .5rem 0; } summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
.sheet { width: 100%; }
.sheet th { font-weight: 400; text-align: left; padding: .2rem .8rem .2rem 0; width: 11rem;
  line-height: 1.2; } .sheet td { padding: 2px 0; }
.sheet img { width: 100%; image-rendering: pixelated; display: block; }
.wide { overflow-x: auto; } .cells td, .cells th { text-align: right; padding: .2rem .6rem;
  border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
.cells th { vertical-align: bottom; white-space: normal; }
.heat td, .heat th { padding: .45rem .8rem; text-align: center; font-weight: 400; }
.heat td b { text-decoration: underline; }
@media (max-width: 600px) { .sheet th, .sheet td { display: block; width: auto; } }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body>
{body}
</body></html>
"""
