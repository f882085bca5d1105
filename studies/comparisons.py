"""Print the tables of docs/results/comparisons.md from the report.json of three runs.

    python -m studies comparisons runs/comparisons runs/compare-fixed-w runs/compare-plain-w

The runs are those of the recipes comparisons, compare-fixed-w and compare-plain-w, in this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from studies.cells import DDIM, RMS, Cells, Column, Line, Report, at
from studies.common import argument_parser, facts_line, joined, markdown

STOCHASTIC = "stochastic"
SOLVERS = {"DDIM": DDIM, "DPM-Solver++": "dpm-solver++", "UniPC": "unipc"}


class Entry(NamedTuple):
    """One row of a table.

    Attributes:
        name: in the first column.
        line: the cells it shows.
        run: which of the three runs they are from, counted from 0.
    """

    name: str
    line: Line
    run: int = 0


class Comparison(NamedTuple):
    """One table: its title, the values of w, and its rows."""

    title: str
    ws: tuple[float, ...]
    entries: tuple[Entry, ...]


def _student(steps: int, sampler: str = DDIM) -> Line:
    return Line(f"student-{steps}", sampler, steps)


CHAIN = tuple(Entry(f"chain, {n} steps", _student(n)) for n in (8, 4, 2))
COMPARISONS = (
    Comparison(
        "A student for one w",
        (1.0,),
        tuple(
            Entry(f"{name}, {n} steps", _student(n), run)
            for n in (8, 4)
            for run, name in ((0, "live w"), (1, "w = 1 alone"))
        ),
    ),
    Comparison(
        "Two students instead of stage one",
        (0.0, 1.0, 2.0, 4.0),
        (*CHAIN, *(Entry(f"pair, {n} steps", Line(f"pair-{n}", DDIM, n)) for n in (8, 4, 2))),
    ),
    Comparison(
        "Deterministic and stochastic",
        (0.0, 1.0, 2.0, 4.0),
        tuple(
            Entry(f"{sampler}, {n} steps", _student(n, sampler))
            for n in (8, 4)
            for sampler in (DDIM, STOCHASTIC)
        ),
    ),
    Comparison(
        "The teacher under three solvers",
        (1.0, 4.0),
        (
            *(
                Entry(f"{name}, {n} steps", Line("teacher", sampler, n))
                for n in (2, 4, 8, 16)
                for name, sampler in SOLVERS.items()
            ),
            *CHAIN,
        ),
    ),
    Comparison(
        "The chain and direct plans at one cost",
        (0.0, 1.0, 2.0, 4.0),
        (
            Entry("chain 8, 4", _student(4)),
            Entry("direct, 8 sub-steps, 410 updates", Line("direct-4-of-8", DDIM, 4)),
            Entry("direct, 4 sub-steps, 640 updates", Line("direct-4-of-4", DDIM, 4)),
        ),
    ),
    Comparison(
        "Slow features of w, and all",
        (0.5, 1.0, 2.5),
        tuple(
            Entry(f"{name} features, {n} steps", _student(n), run)
            for n in (8, 4)
            for run, name in ((0, "slow"), (2, "all"))
        ),
    ),
)


def main(arguments: Sequence[str]) -> None:
    """Print every table, then the facts of each run."""
    parser = argument_parser("comparisons", __doc__)
    for name in ("comparisons", "compare-fixed-w", "compare-plain-w"):
        parser.add_argument(name, type=Path, help=f"the folder of the run of {name}")
    given = vars(parser.parse_args(arguments))
    reports = [Report.read(folder / "report.json") for folder in given.values()]
    runs = [report.cells for report in reports]
    for comparison in COMPARISONS:
        print(f"\n## {comparison.title}\n\n{table(comparison, runs)}")
    for report in reports:
        print("\n" + facts_line(report.facts))


def table(comparison: Comparison, runs: Sequence[Cells]) -> str:
    """Return one table. Raises StudyError if a run lacks one of its cells."""
    fd, ws = runs[0].fd_name, comparison.ws
    columns = [
        Column(f"{fd}, w = {joined(ws)}", fd, 2, ws),
        Column("paired distance", RMS, 3, ws),
        Column("recall", "recall", 2, ws),
        Column("variance", "variance", 1, ws),
    ]
    rows = []
    for entry in comparison.entries:
        cells = runs[entry.run]
        evaluations = [at(cells, entry.line, w).evaluations for w in ws]
        figures = [column.text(entry.line, [cells]) for column in columns]
        rows.append([entry.name, str(evaluations[-1]), *figures])
    return markdown(["", "evaluations", *(c.head for c in columns)], rows, numbers=[1])
