"""Measure consistency students under DDIM too, and print the tables of docs/lab/consistency.md.

    python -m studies consistency measure runs/consistency/digits-0
    python -m studies consistency write separate=runs/pixels/digits-0 end=runs/consistency/digits-0

Both take finished reports. `measure` adds RUN/deterministic.json: the same students by DDIM steps,
for which they were not made. Runs of one name are seeds, with a slash between their figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep import Stage
from fewstep.atomic import atomic_write
from fewstep.core.device import choose_device
from fewstep.distill.plan import TEACHER
from fewstep.folders import load, load_model
from fewstep.measure.cell import CONSISTENCY
from fewstep.measure.redrawn import Redrawn
from fewstep.metrics import FD_TO_TEACHER
from fewstep.recipes.config import load_recipe
from studies.cells import DDIM, RMS, Cells, Column, Line, cells_of
from studies.common import argument_parser, evaluation_of, joined, markdown, read_json

ROWS = "deterministic.json"
STEPS = (4, 2)  # at one step the two samplers are the same
SHOWN = (4, 2, 1)


def main(arguments: Sequence[str]) -> None:
    """Measure a run, or print the table of measured ones."""
    parser = argument_parser("consistency", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="measure the consistency students of a run")
    measuring.add_argument("run", type=Path, help="the folder of a finished report")
    measuring.add_argument("--device", help="cpu, cuda or cuda:N")
    writing = commands.add_parser("write", help="print the table")
    writing.add_argument("runs", nargs="+", type=_named, metavar="NAME=RUN", help="finished runs")
    given = parser.parse_args(arguments)
    if given.command == "measure":
        measure(given.run, choose_device(given.device))
        return
    runs: dict[str, list[Cells]] = {}
    for name, folder in given.runs:
        runs.setdefault(name, []).append(cells_in(folder))
    print(table(runs))


def _named(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not folder:
        raise argparse.ArgumentTypeError(f"give NAME=RUN, got {text!r}")
    return name, Path(folder)


def measure(folder: Path, device: str) -> None:
    """Write the cells of a run's consistency students under DDIM: RUN/deterministic.json."""
    recipe = load_recipe(str(folder / "recipe.yaml"))
    settings = recipe.evaluate
    evaluation = evaluation_of(recipe, folder / "evaluation", device)
    teacher, rows = load(folder / TEACHER, device), list[dict[str, Any]]()
    for stage in recipe.distill.plan():
        if stage.sampler != CONSISTENCY:
            continue
        student = load_model(folder / stage.name, device)
        # A stage whose student may take any sampler.
        student.card = student.card.model_copy(update={"stage": Stage(stage.name, stage.parent)})
        for w in settings.w:
            steps, sampler = settings.reference_steps, settings.reference_sampler
            reference = evaluation.cell(TEACHER, teacher, w=w, steps=steps, sampler=sampler)
            again = Redrawn(evaluation, teacher, sampler, steps, w)
            redrawn = again if settings.fd_to_teacher else None
            for n in STEPS:
                cell = evaluation.cell(
                    stage.name,
                    student,
                    w=w,
                    steps=n,
                    sampler=DDIM,
                    teacher=reference,
                    redrawn=redrawn,
                )
                rows.append(cell.row)
    atomic_write(folder / ROWS, json.dumps(rows, indent=1).encode())


def cells_in(folder: Path) -> Cells:
    """Return the cells of a run, with those of `measure` where it has them."""
    more = folder / ROWS
    reported = cells_of(read_json(folder / "report.json")["rows"])
    return Cells([*reported, *(cells_of(read_json(more)) if more.is_file() else ())])


def table(runs: Mapping[str, Sequence[Cells]]) -> str:
    """Return the students of every run by their steps, below the teacher's reference."""
    first = next(iter(runs.values()))
    fd, ws = first[0].fd_name, first[0].ws
    columns = [Column(name, name, 2, ws) for name in (fd, FD_TO_TEACHER)]
    columns += [Column("paired distance", RMS, 3, ws)]
    columns += [Column("recall", "recall", 2, ws), Column("variance", "variance", 2, ws)]
    head = ["student", "steps", "sampler", *(f"{c.head}, w = {joined(ws)}" for c in columns)]
    rows = []
    for steps in SHOWN:
        for name, seeds in runs.items():
            lines = (line for line in seeds[0].lines if line.steps == steps)
            for line in lines:
                if line.model != TEACHER:
                    label = line.model if line.model in name else f"{name}: {line.model}"
                    rows.append([label, str(steps), line.sampler, *_texts(line, columns, seeds)])
    return markdown(head, rows, numbers=(1,))


def _texts(line: Line, columns: Sequence[Column], seeds: Sequence[Cells]) -> list[str]:
    paired = line.sampler == DDIM or line.steps == 1
    return [c.text(line, seeds) if paired or c.figure != RMS else "-" for c in columns]
