"""Tables, plots and sheets of measured cells, as files.

folder/table.md, table.csv           a row for each cell
folder/plots/score.svg               class score against Frechet distance over w
folder/plots/fd-w1.svg, rms-w1.svg   distances against evaluations, one for each w
folder/plots/fd-to-teacher-w1.svg     the same of the distance to the teacher's samples
folder/sheets/w1.png                 the first images of each cell, from the same noise
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fewstep.atomic import atomic_write
from fewstep.measure.cell import Cell, Cells
from fewstep.measure.evaluate import Evaluation
from fewstep.metrics import FD_TO_TEACHER, RMS
from fewstep.show.escape import in_markdown, printable
from fewstep.show.plots import against_evaluations, score_against_distance
from fewstep.show.sheet import contact_sheet, save_sheet
from fewstep.show.tables import aligned, comma_separated, markdown
from fewstep.show.weak import Warned, marks_of, measurements_of, reasons_of, warnings_of

SHEET = 20  # images of each cell that a sheet shows
HEAD = '<?xml version="1.0" encoding="utf-8"?>\n'


@dataclass(frozen=True)
class Remarks:
    """What is written below a table.

    Attributes:
        warnings: about its figures.
        missing: sentences, why figures are missing.
        roles: of the models, {name: role}, for the plots.
    """

    warnings: Sequence[Warned] = ()
    missing: Sequence[str] = ()
    roles: Mapping[str, str] = field(default_factory=dict)


def remarks_on(
    cells: Cells, teachers: Sequence[Cell], evaluation: Evaluation, roles: Mapping[str, str]
) -> Remarks:
    """Return what is written below the table of some cells.

    teachers: cells of the many-step teacher that paired distances refer to. roles: of the models.
    """
    measurements = measurements_of(
        cells, teachers, evaluation.samples, evaluation.features, evaluation.reference
    )
    return Remarks(warnings_of(measurements), reasons_of(cells), roles)


def write_figures(folder: Path, cells: Cells, remarks: Remarks | None = None) -> None:
    """Write the files that the module's text lists, each complete; the folder is created.

    cells: of one extractor's features, at least one; the images of those that models have drawn
    are on the disk. A sheet has a row for each cell at its w. remarks: go below the table.
    """
    below = remarks or Remarks()
    files = {"table.md": markdown_page(cells, below), "table.csv": comma_separated(cells.rows)}
    files["plots/score.svg"] = score_against_distance(cells, below.roles)
    fd = cells.fd_name
    plotted = (
        (fd.split("_")[0], fd, fd),
        ("rms", RMS, "paired distance"),
        ("fd-to-teacher", FD_TO_TEACHER, FD_TO_TEACHER),
    )
    for w in cells.ws:
        for name, figure, label in plotted:
            plot = against_evaluations(cells, figure, label, w, below.roles)
            files[f"plots/{name}-w{short(w)}.svg"] = plot
    for name, text in files.items():
        if name.endswith(".svg"):
            if not text:  # nothing to plot: an older plot would be of other cells
                (folder / name).unlink(missing_ok=True)
                continue
            text = HEAD + text
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / name, text.encode())
    for w in cells.ws:
        _write_sheet(folder, w, cells.at_w(w))


def _write_sheet(folder: Path, w: float, cells: Cells) -> None:
    drawn = [(cell, cell.images[:SHEET]) for cell in cells]
    shown = [(cell, images) for cell, images in drawn if len(images)]
    if not shown:
        return
    (folder / "sheets").mkdir(exist_ok=True)
    columns = min(len(images) for _, images in shown)
    sheet = contact_sheet(torch.cat([images[:columns] for _, images in shown]), columns, scale=2)
    labels = [f"{cell.model} {cell.sampler} {cell.steps}" for cell, _ in shown]
    save_sheet(sheet, folder / "sheets" / f"w{short(w)}.png", {"w": w, "rows": labels})


def markdown_page(cells: Cells, remarks: Remarks) -> str:
    """Return the cells as a Markdown table, with the remarks below it."""
    parts = [markdown(cells.rows, marks_of(remarks.warnings))]
    if remarks.warnings:
        lines = (f"{i}. {in_markdown(w.sentence)}\n" for i, w in enumerate(remarks.warnings, 1))
        parts.append("Warnings:\n\n" + "".join(lines))
    if remarks.missing:
        lines = (f"- {in_markdown(line)}\n" for line in remarks.missing)
        parts.append("Not measured:\n\n" + "".join(lines))
    return "\n".join(parts)


def terminal_page(cells: Cells, remarks: Remarks) -> str:
    """Return the cells as aligned columns, with the remarks below them."""
    lines = [aligned(cells.rows, marks_of(remarks.warnings)), *remark_lines(remarks)]
    return "\n".join(lines)


def remark_lines(remarks: Remarks) -> list[str]:
    """Return the remarks as lines for a terminal; none where there are none."""
    lines = [f"warning ({i}): {printable(w.sentence)}" for i, w in enumerate(remarks.warnings, 1)]
    return lines + [f"not measured: {printable(line)}" for line in remarks.missing]


def short(w: float) -> str:
    """Return w for a file name: as few digits as tell it from every other number."""
    text = f"{w:g}"
    return text if float(text) == w else repr(w)
