"""Compare an any-step student with separate students at each number of steps.

    python -m studies any_steps SEPARATE ANY [SEPARATE ANY ...]

Each pair is the report.json of a run with separate students and that of a run with an any-step
student of the same teacher; further pairs are other seeds. A ratio is the mean over seeds and w of
what the any-step student has as a part of what the separate one has; below 1 it is nearer to the
teacher (paired distance) or to the data (Fréchet distance). The evaluations are those of the
training, from the recipe.yaml beside each report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from fewstep.recipes.config import load_recipe
from studies.cells import DDIM, RMS, Cells, Column, Line, Report, at, figure
from studies.common import StudyError, argument_parser, facts_line, joined, markdown

ANY = "student-any"


def main(arguments: Sequence[str]) -> None:
    """Print the table of all pairs, the evaluations of both trainings, and the facts."""
    parser = argument_parser("any_steps", __doc__)
    parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT", help="a report.json")
    parser.add_argument("--model", default=ANY, help=f"the any-step student; default {ANY}")
    given = parser.parse_args(arguments)
    paths: list[Path] = given.reports
    if len(paths) % 2:
        raise StudyError(
            f"reports must come in pairs, separate students before the any-step student, got "
            f"{len(paths)}. Add the missing one."
        )
    separate, one = ([Report.read(p) for p in paths[k::2]] for k in (0, 1))
    print(table([r.cells for r in separate], [r.cells for r in one], given.model))
    whole, few = (evaluations(paths[k]) for k in (0, 1))
    print(f"\nevaluations: {whole:,} and {few:,}, {few / whole:.2f} of them")
    print(facts_line(one[0].facts))


def evaluations(report: Path) -> int:
    """Return what the training of all few-step students of a run cost."""
    recipe = load_recipe(str(report.parent / "recipe.yaml"))
    batch = recipe.distill.batch_size
    return sum(s.cost(batch).evaluations for s in recipe.distill.plan() if s.counts)


def table(separate: Sequence[Cells], one: Sequence[Cells], model: str) -> str:
    """Return two rows and their ratios for each number of steps that both have."""
    fd, ws = separate[0].fd_name, separate[0].ws
    columns = [Column(fd, fd, 2, ws), Column("paired distance", RMS, 3, ws)]
    rows = []
    for n in [line.steps for line in one[0].lines if line.model == model]:
        ours, theirs = Line(model, DDIM, n), _of_steps(separate[0], n)
        rows.append([f"{n}, separate", *(c.text(theirs, separate) for c in columns)])
        rows.append([f"{n}, {model}", *(c.text(ours, one) for c in columns)])
        ratios = [ratio(separate, one, theirs, ours, c.figure, ws) for c in columns]
        rows.append([f"{n}, ratio", *(f"{r:.3f}" for r in ratios)])
    return markdown([f"w = {joined(ws)}", *(c.head for c in columns)], rows)


def _of_steps(cells: Cells, steps: int) -> Line:
    """Return the line of the separate student of so many steps."""
    found = [x for x in cells.lines if x.steps == steps and x.model.startswith("student")]
    if not found:
        raise StudyError(
            f"the first report of a pair must have a student of {steps} steps, got "
            f"{', '.join(dict.fromkeys(x.model for x in cells.lines))}. Give another report."
        )
    return found[0]


def ratio(
    separate: Sequence[Cells],
    one: Sequence[Cells],
    theirs: Line,
    ours: Line,
    name: str,
    ws: Sequence[float],
) -> float:
    """Return the mean over seeds and w of a figure as a part of the separate student's."""
    return mean(
        figure(at(b, ours, w), name) / figure(at(a, theirs, w), name)
        for a, b in zip(separate, one, strict=True)
        for w in ws
    )
