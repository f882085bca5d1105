"""Tables, plots and sheets of measured cells, as files.

folder/table.md, table.csv           the rows
folder/plots/score.svg               class score against Frechet distance over w
folder/plots/fd-w1.svg, rms-w1.svg   distances against evaluations, one for each w
folder/sheets/w1.png                 the first images of each cell, from the same noise
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.atomic import atomic_write
from fewstep.metrics import distance_key
from fewstep.show.escape import in_markdown, printable
from fewstep.show.plots import against_evaluations, score_against_distance
from fewstep.show.sheet import contact_sheet, save_sheet
from fewstep.show.tables import aligned, comma_separated, markdown
from fewstep.show.weak import Warned, marks_of

Row = dict[str, Any]
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


def write_figures(
    folder: Path,
    rows: Sequence[Row],
    sheets: dict[float, list[Tensor]],
    remarks: Remarks | None = None,
) -> None:
    """Write the files that the module's text lists, each complete; the folder is created.

    rows: of one extractor's features, at least one. sheets: for each w, the images (n, C, H, W)
    of its cells in the order of the rows, one row of the sheet each; a cell without images has
    none. remarks: go below the table.
    """
    told = remarks or Remarks()
    fd = distance_key(rows[0])
    files = {"table.md": markdown_page(rows, told), "table.csv": comma_separated(rows)}
    files["plots/score.svg"] = score_against_distance(rows, fd, told.roles)
    for w in sorted({row["w"] for row in rows if row["w"] is not None}):
        for key, label in ((fd, fd), ("rms_to_teacher", "paired distance")):
            plot = against_evaluations(rows, key, label, w, told.roles)
            files[f"plots/{key.split('_')[0]}-w{short(w)}.svg"] = plot
    for name, text in files.items():
        if name.endswith(".svg"):
            if not text:  # nothing to plot: an older plot would be of other cells
                (folder / name).unlink(missing_ok=True)
                continue
            text = HEAD + text
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / name, text.encode())
    for w, images in sheets.items():
        _write_sheet(folder, w, [r for r in rows if r["w"] == w], images)


def _write_sheet(folder: Path, w: float, rows: Sequence[Row], images: Sequence[Tensor]) -> None:
    shown = [(r, x) for r, x in zip(rows, images, strict=True) if len(x)]
    if not shown:
        return
    (folder / "sheets").mkdir(exist_ok=True)
    columns = min(len(x) for _, x in shown)
    sheet = contact_sheet(torch.cat([x[:columns] for _, x in shown]), columns, scale=2)
    labels = [f"{r['model']} {r['sampler']} {r['steps']}" for r, _ in shown]
    save_sheet(sheet, folder / "sheets" / f"w{short(w)}.png", {"w": w, "rows": labels})


def markdown_page(rows: Sequence[Row], remarks: Remarks) -> str:
    """Return the rows as a Markdown table, with the remarks below it."""
    parts = [markdown(rows, marks_of(remarks.warnings))]
    if remarks.warnings:
        lines = (f"{i}. {in_markdown(w.sentence)}\n" for i, w in enumerate(remarks.warnings, 1))
        parts.append("Warnings:\n\n" + "".join(lines))
    if remarks.missing:
        lines = (f"- {in_markdown(line)}\n" for line in remarks.missing)
        parts.append("Not measured:\n\n" + "".join(lines))
    return "\n".join(parts)


def terminal_page(rows: Sequence[Row], remarks: Remarks) -> str:
    """Return the rows as aligned columns, with the remarks below them."""
    lines = [aligned(rows, marks_of(remarks.warnings)), *remark_lines(remarks)]
    return "\n".join(lines)


def remark_lines(remarks: Remarks) -> list[str]:
    """Return the remarks as lines for a terminal; none where there are none."""
    lines = [f"warning ({i}): {printable(w.sentence)}" for i, w in enumerate(remarks.warnings, 1)]
    return lines + [f"not measured: {printable(line)}" for line in remarks.missing]


def short(w: float) -> str:
    """Return w for a file name: as few digits as tell it from every other number."""
    text = f"{w:g}"
    return text if float(text) == w else repr(w)
