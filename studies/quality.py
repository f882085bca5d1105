r"""Measure students against the teacher under several solvers: docs/results/quality.md.

    python -m studies quality measure runs/digits --out runs/study-quality-digits --w 1 0 4
    python -m studies quality measure runs/cifar10-small --out runs/study-quality-cifar10-small \
        --w 1 --solvers unipc=8,9,10,12,16,6,4,2,25 dpm-solver++ heun deterministic=8,16,25,4,2
    python -m studies quality write runs/study-quality-digits runs/study-quality-cifar10-small

`measure` needs a finished run. It starts from a copy of the cells that were measured before, and
does not measure those again. `write` writes the CSV and the plots, and prints the tables.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.atomic import atomic_write
from fewstep.folders import load
from fewstep.recipes.config import load_recipe
from fewstep.show.figures import HEAD
from fewstep.show.plots import against_evaluations
from fewstep.show.tables import comma_separated
from studies.cells import DDIM, RMS, Cell, Cells, cells_of, figure
from studies.common import DOCS, argument_parser, evaluation_of, markdown, read_json

# Numbers of steps, the most telling first, since a run may be stopped before it has measured all.
# A guided step is two evaluations, and one of Heun's four except for the last: 4 to 50 evaluations.
STEPS: dict[str, tuple[int, ...]] = {
    "unipc": (8, 10, 12, 16, 6, 4, 2, 25),
    "dpm-solver++": (8, 10, 12, 16, 6, 4, 2, 25),
    "heun": (5, 8, 3, 2, 13),
    DDIM: (8, 16, 10, 25, 4, 2),
}
NAMES = {"unipc": "UniPC", "dpm-solver++": "DPM-Solver++ (2M)", "heun": "Heun", DDIM: "DDIM"}
STUDENTS = (8, 4, 2, 1)
ROWS = "quality.json"


def main(arguments: Sequence[str]) -> None:
    """Measure a run, or write the tables and plots of measured ones."""
    parser = argument_parser("quality", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="measure the models of a finished run")
    measuring.add_argument("run", type=Path, help="the folder of a finished run")
    measuring.add_argument("--known", type=Path, help="measured cells; by default RUN/evaluation")
    measuring.add_argument("--out", type=Path, required=True, help="where the figures are kept")
    measuring.add_argument("--w", nargs="+", type=float, required=True, help="guidance weights")
    measuring.add_argument(
        "--solvers",
        nargs="+",
        type=solver_steps,
        default=list(STEPS.items()),
        help="solvers, each with its numbers of steps (not evaluations): unipc, or unipc=8,16",
    )
    writing = commands.add_parser("write", help="write the CSV and the plots, print the tables")
    writing.add_argument("folders", nargs="+", type=Path, help="the --out of `measure`")
    writing.add_argument("--docs", type=Path, default=DOCS, help="folder of the pages")
    given = parser.parse_args(arguments)
    if given.command == "measure":
        known = given.known or given.run / "evaluation"
        measure(given.run, known, given.out, given.w, dict(given.solvers))
    else:
        write(given.folders, given.docs)


def solver_steps(text: str) -> tuple[str, tuple[int, ...]]:
    """Return a solver and its numbers of steps from "unipc" or "unipc=8,16"."""
    sampler, _, counts = text.partition("=")
    if sampler not in STEPS:
        raise argparse.ArgumentTypeError(
            f"a solver must be one of {', '.join(STEPS)}, got {sampler!r}. Pass one, for example "
            "unipc=8,16"
        )
    return sampler, tuple(int(n) for n in counts.split(",")) if counts else STEPS[sampler]


def measure(
    run: Path, known: Path, out: Path, ws: Sequence[float], steps: Mapping[str, Sequence[int]]
) -> None:
    """Measure the students, and the teacher under every solver, at every w: OUT/quality.json."""
    recipe = load_recipe(str(run / "recipe.yaml"))
    if not (out / "evaluation").exists():
        shutil.copytree(known, out / "evaluation")
    settings = recipe.evaluate
    evaluation = evaluation_of(recipe, out / "evaluation")
    teacher = load(run / "teacher", "cpu")
    rows: list[dict[str, Any]] = []
    for w in ws:
        reference = evaluation.cell("teacher", teacher, w=w, steps=settings.reference_steps)
        rows.append(reference.row | {RMS: 0.0})
        for n in STUDENTS:
            student = load(run / f"student-{n}", "cpu")
            rows.append(evaluation.cell(f"student-{n}", student, w=w, teacher=reference).row)
        for sampler, counts in steps.items():
            for n in counts:
                cell = evaluation.cell(
                    "teacher", teacher, w=w, steps=n, sampler=sampler, teacher=reference
                )
                rows.append(cell.row)
                atomic_write(out / ROWS, json.dumps(rows, indent=1).encode())


def write(folders: Sequence[Path], docs: Path) -> None:
    """Write the CSV and the plots into the documentation, and print the tables."""
    measured = {
        folder.name.removeprefix("study-quality-"): cells_of(read_json(folder / ROWS))
        for folder in folders
    }
    rows = [_csv_row(name, cell) for name, cells in measured.items() for cell in cells.drawn]
    atomic_write(docs / "results" / "data" / "quality.csv", comma_separated(rows).encode())
    for name, cells in measured.items():
        fd = cells.fd_name
        for w in cells.ws:
            here = cells.at_w(w)
            plot = HEAD + against_evaluations(here, fd, fd, w)
            atomic_write(docs / "images" / f"quality-{name}-w{w:g}.svg", plot.encode())
            print(f"\n### {name}, w = {w:g}\n\n{curves(here)}\n\n{answers(here)}")


def _csv_row(name: str, cell: Cell) -> dict[str, Any]:
    shared = {"data": name, **cell.line._asdict(), "evaluations": cell.evaluations, "w": cell.w}
    figures = cell.figures.by_name
    fd = figure(cell, cell.figures.fd_name)
    return shared | {"fd": fd, **{k: figures[k] for k in (RMS, "recall", "variance")}}


def curves(cells: Cells) -> str:
    """Return both distances of every solver by evaluations, then those of all other cells."""
    fd = cells.fd_name
    reference = _reference(cells)
    solved = [c for c in cells if c.line.model == "teacher" and c.line != reference.line]
    others = [c for c in cells if c.line.model != "teacher" or c.line == reference.line]
    counts = sorted({cell.evaluations for cell in solved})
    rows = []
    for sampler, name in NAMES.items():
        mine = {c.evaluations: _distances(c) for c in solved if c.line.sampler == sampler}
        texts = [" / ".join(mine[n]) if n in mine else "-" for n in counts]
        rows.append([name, *texts])
    solvers = markdown([f"{fd} / paired distance at", *map(str, counts)], rows)
    rows = []
    for cell in others:
        model, _, steps = cell.line
        name = f"teacher, {steps} steps" if model == "teacher" else model
        rows.append([name, str(cell.evaluations), *_distances(cell)])
    head = ["", "evaluations", fd, "paired distance"]
    return solvers + "\n\n" + markdown(head, rows, numbers=[1, 2, 3])


def _distances(cell: Cell) -> tuple[str, str]:
    return f"{figure(cell, cell.figures.fd_name):.2f}", f"{figure(cell, RMS):.3f}"


def answers(cells: Cells) -> str:
    """Return the evaluations that each solver needs to reach the teacher, and student-4."""
    fd = cells.fd_name
    teacher = _reference(cells)
    student = next(cell for cell in cells if cell.line.model == "student-4")
    wanted = {
        f"{fd} within 10 % of the teacher's": (fd, 1.1 * figure(teacher, fd)),
        f"student-4's {fd}": (fd, figure(student, fd)),
        "student-4's paired distance": (RMS, figure(student, RMS)),
    }
    groups = {
        name: [c for c in cells if c.line[:2] == ("teacher", sampler) and c is not teacher]
        for sampler, name in NAMES.items()
    }
    groups["students"] = [c for c in cells if c.line.model.startswith("student")]
    rows = [
        [name, *(needed(mine, key, most) for key, most in wanted.values())]
        for name, mine in groups.items()
    ]
    return markdown(["evaluations for", *wanted], rows, numbers=range(1, 4))


def needed(cells: Sequence[Cell], key: str, most: float) -> str:
    """Return the first measured count of evaluations from which on the figure is at most `most`.

    "8 (not 6)": 8 evaluations suffice; 6, the next smaller count measured, do not. "> 25": the
    largest count measured does not suffice. "-": there are no cells.
    """
    ordered = sorted(cells, key=lambda cell: cell.evaluations)
    if not ordered:
        return "-"
    bad = [cell.evaluations for cell in ordered if figure(cell, key) > most]
    if bad and bad[-1] == ordered[-1].evaluations:
        return f"> {bad[-1]}"
    good = [cell.evaluations for cell in ordered if not bad or cell.evaluations > bad[-1]]
    return f"{good[0]}" + (f" (not {bad[-1]})" if bad else "")


def _reference(cells: Cells) -> Cell:
    """Return the teacher's cell with the most DDIM steps."""
    teachers = [cell for cell in cells if cell.line[:2] == ("teacher", DDIM)]
    return max(teachers, key=lambda cell: cell.line.steps)
