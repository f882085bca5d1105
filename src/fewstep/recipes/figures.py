"""Tables, plots and sheets of measured cells, as files.

folder/table.md, table.csv           the rows
folder/plots/score.svg               class score against Frechet distance over w
folder/plots/fd-w1.svg, rms-w1.svg   distances against evaluations, one for each w
folder/sheets/w1.png                 the first images of each cell, from the same noise
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.atomic import atomic_write
from fewstep.metrics import distance_key
from fewstep.recipes.plots import against_evaluations, score_against_distance
from fewstep.recipes.sheet import contact_sheet, save_sheet
from fewstep.recipes.tables import comma_separated, markdown

Row = dict[str, Any]
HEAD = '<?xml version="1.0" encoding="utf-8"?>\n'


def write_figures(folder: Path, rows: Sequence[Row], sheets: dict[float, list[Tensor]]) -> None:
    """Write the files that the module's text lists, each whole; the folder is made.

    rows: of one extractor's features, at least one. sheets: for each w, the images (n, C, H, W)
    of its cells in the order of the rows; a row of the sheet each.
    """
    fd = distance_key(rows[0])
    files = {"table.md": markdown(rows), "table.csv": comma_separated(rows)}
    files["plots/score.svg"] = HEAD + score_against_distance(rows, fd)
    for w in sorted({row["w"] for row in rows if row["w"] is not None}):
        for key, label in ((fd, fd), ("rms_to_teacher", "paired distance")):
            if any(row[key] for row in rows if row["w"] == w):
                plot = against_evaluations(rows, key, label, w)
                files[f"plots/{key.split('_')[0]}-w{w:g}.svg"] = HEAD + plot
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / name, text.encode())
    for w, images in sheets.items():
        (folder / "sheets").mkdir(exist_ok=True)
        sheet = contact_sheet(torch.cat(images), len(images[0]), scale=2)
        labels = [f"{r['model']} {r['sampler']} {r['steps']}" for r in rows if r["w"] == w]
        save_sheet(sheet, folder / "sheets" / f"w{w:g}.png", {"w": w, "rows": labels})
