"""Print the tables of docs/results/comparisons.md from the three runs' report.json.

python docs/results/compare.py runs/comparisons runs/compare-fixed-w runs/compare-plain-w
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.metrics import distance_key

Row = dict[str, Any]
RMS = "rms_to_teacher"
DDIM, STOCHASTIC = "deterministic", "stochastic"


class Cell(NamedTuple):
    """One line of a table. run: which of the runs it is from."""

    said: str
    run: int
    model: str
    steps: int
    sampler: str = DDIM


CHAIN = [Cell(f"chain, {n} steps", 0, f"student-{n}", n) for n in (8, 4, 2)]
TABLES: dict[str, tuple[list[float], list[Cell]]] = {
    "A student for one w": (
        [1],
        [
            Cell("live w, 8 steps", 0, "student-8", 8),
            Cell("w = 1 alone, 8 steps", 1, "student-8", 8),
            Cell("live w, 4 steps", 0, "student-4", 4),
            Cell("w = 1 alone, 4 steps", 1, "student-4", 4),
        ],
    ),
    "Two students instead of stage one": (
        [0, 1, 2, 4],
        [*CHAIN, *(Cell(f"pair, {n} steps", 0, f"pair-{n}", n) for n in (8, 4, 2))],
    ),
    "Deterministic and stochastic": (
        [0, 1, 2, 4],
        [
            c
            for n in (8, 4)
            for c in (
                Cell(f"deterministic, {n} steps", 0, f"student-{n}", n),
                Cell(f"stochastic, {n} steps", 0, f"student-{n}", n, STOCHASTIC),
            )
        ],
    ),
    "The teacher under three solvers": (
        [1, 4],
        [
            *(
                Cell(f"{said}, {n} steps", 0, "teacher", n, sampler)
                for n in (2, 4, 8, 16)
                for said, sampler in (
                    ("DDIM", DDIM),
                    ("DPM-Solver++", "dpm-solver++"),
                    ("UniPC", "unipc"),
                )
            ),
            *CHAIN,
        ],
    ),
    "The chain and direct plans at one cost": (
        [0, 1, 2, 4],
        [
            Cell("chain 8, 4", 0, "student-4", 4),
            Cell("direct, 8 sub-steps, 410 updates", 0, "direct-4-of-8", 4),
            Cell("direct, 4 sub-steps, 640 updates", 0, "direct-4-of-4", 4),
        ],
    ),
    "Slow features of w, and all": (
        [0.5, 1, 2.5],
        [
            c
            for n in (8, 4)
            for c in (
                Cell(f"slow features, {n} steps", 0, f"student-{n}", n),
                Cell(f"all features, {n} steps", 2, f"student-{n}", n),
            )
        ],
    ),
}


def find(rows: list[Row], cell: Cell, w: float) -> Row:
    wanted = (cell.model, cell.sampler, cell.steps, w)
    return next(r for r in rows if (r["model"], r["sampler"], r["steps"], r["w"]) == wanted)


def main(folders: list[str]) -> None:
    reports = [json.loads((Path(f) / "report.json").read_text(encoding="utf-8")) for f in folders]
    runs: list[list[Row]] = [r["rows"] for r in reports]
    fd = distance_key(runs[0][0])
    for title, (ws, cells) in TABLES.items():
        said = ", ".join(f"{w:g}" for w in ws)
        print(f"\n## {title}\n")
        print(f"| | evaluations | {fd}, w = {said} | paired distance | recall | variance |")
        print("| --- | ---: | --- | --- | --- | --- |")
        for cell in cells:
            found = [find(runs[cell.run], cell, w) for w in ws]
            columns = [
                " ".join("-" if r[k] is None else f"{r[k]:.{d}f}" for r in found)
                for k, d in ((fd, 2), (RMS, 3), ("recall", 2), ("variance", 1))
            ]
            print(f"| {cell.said} | {found[-1]['evaluations']} | {' | '.join(columns)} |")
    for report in reports:
        print("\n" + "; ".join(f"{k} {v}" for k, v in report["facts"].items()))


if __name__ == "__main__":
    main(sys.argv[1:])
