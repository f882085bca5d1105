"""Print the tables of docs/results from the report.json of one or more runs of one recipe.

python docs/results/table.py runs/demo/report.json runs/seed-1/report.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fewstep.metrics import distance_key

Row = dict[str, Any]
RMS = "rms_to_teacher"


def key(row: Row) -> tuple[str, str, int]:
    return row["model"], row["sampler"], row["steps"]


def figures(reports: list[list[Row]], cell: tuple[str, str, int], name: str, digits: int) -> str:
    """Return the figure at each w; the seeds with a slash between."""
    ws = sorted({r["w"] for r in reports[0] if r["w"] is not None})
    out = []
    for w in ws:
        found = [r[name] for rows in reports for r in rows if key(r) == cell and r["w"] == w]
        out.append("/".join(f"{v:.{digits}f}" for v in found))
    return " ".join(out)


def table(reports: list[list[Row]], fd: str) -> None:
    cells = list(dict.fromkeys(key(r) for r in reports[0] if r["w"] is not None))
    ws = ", ".join(f"{w:g}" for w in sorted({r["w"] for r in reports[0] if r["w"] is not None}))
    more = [("accuracy", 3), ("precision", 2), ("recall", 2), ("variance", 2)]
    more = [(name, d) for name, d in more if name in reports[0][0]]
    head = [f"{fd}, w = {ws}", "paired distance", *(f"{name}, w = 1" for name, _ in more)]
    print(f"| model, sampler, steps (evaluations) | {' | '.join(head)} |")
    print("| --- |" + " --- |" * len(head))
    for cell in cells:
        rows = [r for rows in reports for r in rows if key(r) == cell and r["w"] == 1]
        said = f"{cell[0]}, {cell[1]}, {cell[2]} ({rows[0]['evaluations']})"
        ones = ["/".join(f"{r[k]:.{d}f}" for r in rows) for k, d in more]
        two = [figures(reports, cell, fd, 2), figures(reports, cell, RMS, 3)]
        print(f"| {' | '.join([said, *two, *ones])} |")


def get(rows: list[Row], model: str, steps: int, w: float, sampler: str = "deterministic") -> Row:
    return next(r for r in rows if key(r) == (model, sampler, steps) and r["w"] == w)


def ratios(reports: list[list[Row]], knobs: list[Any], fd: str) -> None:
    """Print the student's figures over the teacher's own at as many steps, and many."""
    many = max(r["steps"] for r in reports[0] if r["model"] == "teacher")
    solvers = {r["sampler"] for r in reports[0] if r["model"] == "teacher"} - {"deterministic"}
    students = {r["steps"] for r in reports[0] if r["model"].startswith("student-")}
    there = {(r["sampler"], r["steps"]) for r in reports[0] if r["model"] == "teacher"}
    rivals = [("deterministic", n) for n in (4, 2, 1) if n in students]
    rivals = [rival for rival in rivals if rival in there]
    rivals += [(s, n) for s in sorted(solvers) for n in (4, 8) if (s, n) in there]

    def line(name: str, values: list[float]) -> None:
        print(f"| {name} | {' / '.join(f'{v:.3f}' for v in values)} |")

    print("\n| ratio | seen |\n| --- | --- |")
    ws = sorted({r["w"] for r in reports[0] if r["w"] is not None})
    for w in ws:
        values = [get(r, "student-4", 4, w)[fd] / get(r, "teacher", many, w)[fd] for r in reports]
        line(f"student-4 / teacher, {many} steps, {fd}, w = {w:g}", values)
    for sampler, n in rivals:
        mine = f"student-{n}" if sampler == "deterministic" else "student-4"
        for name in (fd, RMS):
            values = [
                get(r, mine, int(mine[-1]), 1)[name] / get(r, "teacher", n, 1, sampler)[name]
                for r in reports
            ]
            line(f"{mine} / teacher, {sampler}, {n} steps, {name}, w = 1", values)
    values = [
        get(r, "student-4", 4, 1)["variance"] / get(r, "teacher", many, 1)["variance"]
        for r in reports
    ]
    line("student-4 / teacher, variance, w = 1", values)
    right = [sum(m.index(min(m)) == i for i, m in enumerate(k["matrix"])) for k in knobs]
    line(f"w x w: rows of {len(ws)} with the smallest on the diagonal", [float(v) for v in right])


def main(paths: list[str]) -> None:
    data = [json.loads(Path(p).read_text(encoding="utf-8")) for p in paths]
    rows = [d["rows"] for d in data]
    fd = distance_key(rows[0][0])
    table(rows, fd)
    ratios(rows, [d["knob"] for d in data], fd)
    for d in data:
        print("\n" + "; ".join(f"{k} {v}" for k, v in d["facts"].items()))


if __name__ == "__main__":
    main(sys.argv[1:])
