"""Print the cells of one student in several runs, one row per run, below those of the teacher.

    python -m studies variants runs/strong/latent-small/*/report.json
    python -m studies variants --model student-4 runs/one/*/report.json

A row is named after the folder of its report. The teacher's cells are those of the first report;
all must have been measured beside the same teacher for their paired distances to compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from studies.cells import RMS, Cells, Column, Line, Report
from studies.common import argument_parser, facts_line, joined, markdown

SHOWN = (("paired distance", RMS, 3), ("accuracy", "accuracy", 3), ("recall", "recall", 2),
         ("variance", "variance", 2))  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Print one table of all reports, and the facts of each."""
    parser = argument_parser("variants", __doc__)
    parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT", help="a report.json")
    parser.add_argument("--model", default="student-4", help="that is compared; default student-4")
    given = parser.parse_args(arguments)
    found = map(Report.read, given.reports)
    reports = dict(zip(names(given.reports), found, strict=True))
    print(table(reports, given.model))
    for name, report in reports.items():
        print(f"\n{name}: {facts_line(report.facts)}")


def names(paths: Sequence[Path]) -> list[str]:
    """Return a name per report: its folder's, with the one above where names are not distinct."""
    plain = [p.resolve().parent for p in paths]
    short = [p.name for p in plain]
    return short if len({*short}) == len(short) else [f"{p.parent.name}/{p.name}" for p in plain]


def table(reports: dict[str, Report], model: str) -> str:
    """Return the rows of the teacher and of the model in each report that has it."""
    first: Cells = next(iter(reports.values())).cells
    fd, ws = first.fd_name, first.ws
    columns = [Column(fd, fd, 2, ws)] + [Column(head, key, n, ws) for head, key, n in SHOWN]
    rows = [
        _row(str(line), line, first, columns) for line in first.lines if line.model == "teacher"
    ]
    for name, report in reports.items():
        cells = report.cells
        rows += [_row(name, line, cells, columns) for line in cells.lines if line.model == model]
    return markdown([f"w = {joined(ws)}", *(c.head for c in columns)], rows)


def _row(name: str, line: Line, cells: Cells, columns: Sequence[Column]) -> list[str]:
    return [name, *(column.text(line, [cells]) for column in columns)]
