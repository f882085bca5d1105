r"""Measure and write docs/results/quality.md's figures: students against the teacher's solvers.

    python docs/results/quality.py measure runs/demo --known runs/comparisons/evaluation \
        --out runs/study-quality-digits --w 0 1 4
    python docs/results/quality.py measure runs/cifar10-small \
        --out runs/study-quality-cifar10-small --w 1
    python docs/results/quality.py write runs/study-quality-digits runs/study-quality-cifar10-small

`measure` takes the models of a finished run, and begins with a copy of the cells that were measured
before; what is known is not measured again. `write` makes the CSV, the curves and the tables.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.atomic import atomic_write
from fewstep.metrics import distance_key
from fewstep.models import load
from fewstep.recipes.config import load_recipe
from fewstep.recipes.evaluate import Evaluation
from fewstep.recipes.figures import HEAD
from fewstep.recipes.plots import against_evaluations

Row = dict[str, Any]
DOCS = Path(__file__).parents[1]
DDIM, RMS = "deterministic", "rms_to_teacher"
# The most telling first: a run may be stopped before it has measured all. A guided step is two
# evaluations, Heun's four but for its last: 4 to 50 evaluations.
STEPS: dict[str, tuple[int, ...]] = {
    "unipc": (8, 10, 12, 16, 6, 4, 2, 25),
    "dpm-solver++": (8, 10, 12, 16, 6, 4, 2, 25),
    "heun": (5, 8, 3, 2, 13),
    DDIM: (8, 16, 10, 25, 4, 2),
}
SAID = {"unipc": "UniPC", "dpm-solver++": "DPM-Solver++ (2M)", "heun": "Heun", DDIM: "DDIM"}
STUDENTS = (8, 4, 2, 1)
KEPT = ("model", "sampler", "steps", "evaluations", "w")


def measure(
    run: Path, known: Path, out: Path, ws: Sequence[float], steps: dict[str, Sequence[int]]
) -> None:
    """Measure the students and the teacher's solvers at every w, and keep the rows."""
    recipe = load_recipe(str(run / "recipe.yaml"))
    if not (out / "evaluation").exists():
        shutil.copytree(known, out / "evaluation")
    settings = recipe.evaluate
    evaluation = Evaluation(
        recipe.data,
        out / "evaluation",
        settings.samples,
        recipe.seed,
        settings.batch_size,
        None if settings.features is None else Path(settings.features),
        say=lambda line: print(line, flush=True),
    )
    teacher = load(run / "teacher", "cpu")
    rows: list[Row] = []
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
                atomic_write(out / "quality.json", json.dumps(rows, indent=1).encode())


def write(folders: Sequence[Path]) -> None:
    """Write the CSV and the curves; print the tables."""
    found = {
        folder.name.removeprefix("study-quality-"): json.loads(
            (folder / "quality.json").read_text(encoding="utf-8")
        )
        for folder in folders
    }
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["data", *KEPT, "fd", RMS, "recall", "variance"])
    for name, rows in found.items():
        fd = distance_key(rows[0])
        for row in rows:
            kept = [row[k] for k in (*KEPT, fd, RMS, "recall", "variance")]
            table.writerow([name, *kept])
    atomic_write(DOCS / "results" / "data" / "quality.csv", buffer.getvalue().encode())
    for name, rows in found.items():
        for w in sorted({row["w"] for row in rows}):
            here = [row for row in rows if row["w"] == w]
            fd = distance_key(here[0])
            plot = HEAD + against_evaluations(here, fd, fd, w)
            atomic_write(DOCS / "images" / f"quality-{name}-w{w:g}.svg", plot.encode())
            print(f"\n### {name}, w = {w:g}\n\n{curves(here, fd)}\n\n{answers(here, fd)}")


def curves(rows: Sequence[Row], fd: str) -> str:
    """Return the distance, and the paired one, of every solver against evaluations."""
    solved = [r for r in rows if r["model"] == "teacher" and not _is_reference(r, rows)]
    counts = sorted({r["evaluations"] for r in solved})
    lines = [
        f"| {fd} / paired distance at | {' | '.join(str(n) for n in counts)} |",
        f"| --- |{' --- |' * len(counts)}",
    ]
    for sampler, said in SAID.items():
        mine = {r["evaluations"]: r for r in solved if r["sampler"] == sampler}
        cells = [f"{mine[n][fd]:.2f} / {mine[n][RMS]:.3f}" if n in mine else "-" for n in counts]
        lines.append(f"| {said} | {' | '.join(cells)} |")
    lines += ["", f"| | evaluations | {fd} | paired distance |", "| --- | ---: | ---: | ---: |"]
    for r in rows:
        if r not in solved:
            said = f"teacher, {r['steps']} steps" if r["model"] == "teacher" else r["model"]
            lines.append(f"| {said} | {r['evaluations']} | {r[fd]:.2f} | {r[RMS]:.3f} |")
    return "\n".join(lines)


def answers(rows: Sequence[Row], fd: str) -> str:
    """Return what each solver needs for the teacher's distance and for student-4's figures."""
    teacher = next(r for r in rows if _is_reference(r, rows))
    student = next(r for r in rows if r["model"] == "student-4")
    wanted = {
        f"{fd} within 10 % of the teacher's": (fd, 1.1 * teacher[fd]),
        f"student-4's {fd}": (fd, student[fd]),
        "student-4's paired distance": (RMS, student[RMS]),
    }
    lines = [f"| evaluations for | {' | '.join(wanted)} |", f"| --- |{' ---: |' * len(wanted)}"]
    for sampler, said in SAID.items():
        mine = [r for r in rows if r["sampler"] == sampler and r["model"] == "teacher"]
        mine = [r for r in mine if r is not teacher]
        needed = [_first(mine, key, most) for key, most in wanted.values()]
        lines.append(f"| {said} | {' | '.join(needed)} |")
    students = [r for r in rows if r["model"].startswith("student")]
    needed = [_first(students, key, most) for key, most in wanted.values()]
    lines.append(f"| students | {' | '.join(needed)} |")
    return "\n".join(lines)


def _first(rows: Sequence[Row], key: str, most: float) -> str:
    """Return the first measured count from which on the figure is at most `most`, or what is known.

    With the count before it, which was not enough: what is needed lies between them.
    """
    ordered = sorted(rows, key=lambda r: r["evaluations"])
    if not ordered:
        return "-"
    bad = [r["evaluations"] for r in ordered if r[key] > most]
    if bad and bad[-1] == ordered[-1]["evaluations"]:
        return f"> {bad[-1]}"
    good = [r["evaluations"] for r in ordered if not bad or r["evaluations"] > bad[-1]]
    return f"{good[0]}" + (f" (not {bad[-1]})" if bad else "")


def _is_reference(row: Row, rows: Sequence[Row]) -> bool:
    teachers = [r["steps"] for r in rows if r["model"] == "teacher" and r["sampler"] == DDIM]
    return row["model"] == "teacher" and row["sampler"] == DDIM and row["steps"] == max(teachers)


def solver_steps(text: str) -> tuple[str, tuple[int, ...]]:
    sampler, _, counts = text.partition("=")
    if sampler not in STEPS:
        raise argparse.ArgumentTypeError(f"{sampler!r} is none of {', '.join(STEPS)}")
    return sampler, tuple(int(n) for n in counts.split(",")) if counts else STEPS[sampler]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("run", type=Path, help="a finished run")
    measuring.add_argument("--known", type=Path, help="evaluation folder; the run's by default")
    measuring.add_argument("--out", type=Path, required=True)
    measuring.add_argument("--w", nargs="+", type=float, required=True)
    measuring.add_argument(
        "--solvers",
        nargs="+",
        type=solver_steps,
        default=list(STEPS.items()),
        help="unipc, or unipc=8,16: steps, not evaluations",
    )
    writing = commands.add_parser("write")
    writing.add_argument("folders", nargs="+", type=Path)
    given = parser.parse_args()
    if given.command == "measure":
        known = given.known or given.run / "evaluation"
        measure(given.run, known, given.out, given.w, dict(given.solvers))
    else:
        write(given.folders)


if __name__ == "__main__":
    main()
