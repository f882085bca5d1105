"""Print the tables of docs/results from the report.json of one recipe.

    python -m studies table runs/digits/report.json runs/seed-1/report.json
    python -m studies table --best-w runs/latent-small/report.json

Several reports are seeds of the same recipe: their figures have a slash between. The second table
has ratios of the students' figures to the teacher's. --best-w takes one report and prints the
ratios at the w where the teacher is closest to the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from studies.cells import DDIM, RMS, Cells, Column, Line, Report, at, figure, longest
from studies.common import argument_parser, facts_line, joined, markdown

FIRST = "model, sampler, steps (evaluations)"


def main(arguments: Sequence[str]) -> None:
    """Print the tables of the reports that are named."""
    parser = argument_parser("table", __doc__)
    parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT", help="a report.json")
    parser.add_argument("--best-w", action="store_true", help="compare at the teacher's best w")
    given = parser.parse_args(arguments)
    if given.best_w and len(given.reports) > 1:
        parser.error(f"--best-w takes one report, got {len(given.reports)}. Pass them one by one.")
    reports = [Report.read(path) for path in given.reports]
    if given.best_w:
        print(at_best_w(reports[0]))
    else:
        print(seeds(reports))


def seeds(reports: Sequence[Report]) -> str:
    """Return the cells of all seeds, their ratios to the teacher, and the facts of each report."""
    cells = [report.cells for report in reports]
    facts = [facts_line(report.facts) for report in reports]
    return "\n\n".join([_cells_of_seeds(cells), _ratios(reports), *facts])


def at_best_w(report: Report) -> str:
    """Return the cells of one report, and the ratios to the teacher at the teacher's best w."""
    cells = report.cells
    fd, ws = cells.fd_name, cells.ws
    columns = [
        Column(fd, fd, 2, ws),
        Column("accuracy", "accuracy", 3, ws),
        Column("paired distance", RMS, 3, ws),
    ]
    rows = [_row(line, cells.of(line)[0].evaluations, columns, [cells]) for line in cells.lines]
    teacher = max(
        (line for line in cells.lines if line.model == "teacher"), key=lambda line: line.steps
    )
    best = min(ws, key=lambda w: figure(at(cells, teacher, w), fd))
    parts = [
        markdown([FIRST, *(c.head for c in columns)], rows),
        f"w = {joined(ws)}; the teacher's best w: {best:g}",
        _at_w(cells, teacher, best),
    ]
    last = facts_line(report.facts)
    if cells.held_out is None:
        return "\n\n".join(parts) + "\n" + last
    real = cells.held_out.figures
    held = f"held-out images: {fd} {real.fd:.2f}, accuracy {real.accuracy:.3f}"
    return "\n\n".join([*parts, held]) + "\n" + last


def _at_w(cells: Cells, teacher: Line, w: float) -> str:
    """Return the table of every other line against the teacher's many steps at one w."""
    fd, reference, rows = cells.fd_name, at(cells, teacher, w), []
    for line in cells.lines:
        if line != teacher:
            cell = at(cells, line, w)
            points = 100 * (figure(cell, "accuracy") - figure(reference, "accuracy"))
            ratio = figure(cell, fd) / figure(reference, fd)
            rows.append([str(line), f"{ratio:.3f}", f"{points:+.1f}"])
    head = ["at the teacher's best w", "distance over the teacher's", "accuracy, points"]
    return markdown(head, rows)


def _cells_of_seeds(reports: Sequence[Cells]) -> str:
    first = reports[0]
    columns = [
        Column(f"{first.fd_name}, w = {joined(first.ws)}", first.fd_name, 2, first.ws),
        Column("paired distance", RMS, 3, first.ws),
    ]
    for name, digits in (("accuracy", 3), ("precision", 2), ("recall", 2), ("variance", 2)):
        if any(cell.figures.by_name[name] is not None for cell in first.drawn):
            columns.append(Column(f"{name}, w = 1", name, digits, [1.0]))
    rows = [_row(line, at(first, line, 1.0).evaluations, columns, reports) for line in first.lines]
    return markdown([FIRST, *(c.head for c in columns)], rows)


def _row(
    line: Line, evaluations: int, columns: Sequence[Column], reports: Sequence[Cells]
) -> list[str]:
    return [f"{line} ({evaluations})", *(column.text(line, reports) for column in columns)]


def _ratios(reports: Sequence[Report]) -> str:
    """Return the student's figures divided by the teacher's own at as many steps, and at many."""
    seeds = [report.cells for report in reports]
    first = seeds[0]
    student, teacher = Line("student-4", DDIM, 4), Line("teacher", DDIM, longest(first, "teacher"))
    many = f"student-4 / teacher, {teacher.steps} steps"

    def row(name: str, values: Sequence[float]) -> list[str]:
        return [name, " / ".join(f"{v:.3f}" for v in values)]

    def ratio(name: str, a: Line, b: Line, key: str, w: float) -> list[str]:
        values = [figure(at(cells, a, w), key) / figure(at(cells, b, w), key) for cells in seeds]
        return row(f"{name}, {key}, w = {w:g}", values)

    rows = [ratio(many, student, teacher, first.fd_name, w) for w in first.ws]
    for mine, other in _rivals(first):
        name = f"{mine.model} / teacher, {other.sampler}, {other.steps} steps"
        rows += [ratio(name, mine, other, key, 1.0) for key in (first.fd_name, RMS)]
    rows.append(ratio("student-4 / teacher", student, teacher, "variance", 1.0))
    smallest = [float(_on_the_diagonal(report.matrix)) for report in reports]
    rows.append(row(f"w x w: rows of {len(first.ws)} with the smallest on the diagonal", smallest))
    return markdown(["ratio", "seen"], rows)


def _rivals(cells: Cells) -> list[tuple[Line, Line]]:
    """Return pairs of a student and a line of the teacher with few steps.

    Under DDIM, each student is paired with the teacher at as many steps. Under the other solvers,
    student-4 is paired with 4 and 8 steps.
    """
    solvers = sorted({line.sampler for line in cells.lines if line.model == "teacher"} - {DDIM})
    students = {line.steps for line in cells.lines if line.model.startswith("student-")}
    pairs = [
        (Line(f"student-{n}", DDIM, n), Line("teacher", DDIM, n))
        for n in (4, 2, 1)
        if n in students
    ]
    pairs += [
        (Line("student-4", DDIM, 4), Line("teacher", sampler, n))
        for sampler in solvers
        for n in (4, 8)
    ]
    return [(mine, other) for mine, other in pairs if other in cells.lines]


def _on_the_diagonal(matrix: Sequence[Sequence[float]]) -> int:
    """Return in how many rows the smallest entry is that of the diagonal."""
    return sum(row.index(min(row)) == i for i, row in enumerate(map(list, matrix)))
