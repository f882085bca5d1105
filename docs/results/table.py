"""Print the tables of docs/results/digits.md from the report.json of one or more runs.

python docs/results/table.py runs/demo/report.json runs/seed-1/report.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Row = dict[str, Any]
FD, RMS = "fd_digits", "rms_to_teacher"


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


def table(reports: list[list[Row]]) -> None:
    cells = list(dict.fromkeys(key(r) for r in reports[0] if r["w"] is not None))
    print(
        "| model, sampler, steps (evaluations) | fd_digits | paired distance | variance at w = 1 |"
    )
    print("| --- | --- | --- | --- |")
    for cell in cells:
        rows = [r for rows in reports for r in rows if key(r) == cell and r["w"] == 1]
        said = f"{cell[0]}, {cell[1]}, {cell[2]} ({rows[0]['evaluations']})"
        variance = "/".join(f"{r['variance']:.2f}" for r in rows)
        fd, rms = figures(reports, cell, FD, 2), figures(reports, cell, RMS, 3)
        print(f"| {said} | {fd} | {rms} | {variance} |")


def get(rows: list[Row], model: str, steps: int, w: float) -> Row:
    return next(r for r in rows if key(r) == (model, "deterministic", steps) and r["w"] == w)


def ratios(reports: list[list[Row]], knobs: list[Any]) -> None:
    def line(name: str, bound: str, values: list[float]) -> None:
        print(f"| {name} | {bound} | {' / '.join(f'{v:.3f}' for v in values)} |")

    print("\n| ratio | wanted | seen |\n| --- | --- | --- |")
    for w in (0, 1, 2, 4):
        values = [get(r, "student-4", 4, w)[RMS] / get(r, "teacher", 4, w)[RMS] for r in reports]
        line(f"student-4 / DDIM-4, distance, w = {w}", f"≤ {0.65 if w == 1 else 0.75}", values)
    for n in (2, 1):
        values = [get(r, f"student-{n}", n, 1)[RMS] / get(r, "teacher", n, 1)[RMS] for r in reports]
        line(f"student-{n} / DDIM-{n}, distance, w = 1", "≤ 0.5", values)
    for name, bound, (steps, other, n) in (
        ("student-4 / teacher", "≤ 1.4", (4, 256, 4)),
        ("student-4 / DDIM-4", "≤ 0.8", (4, 4, 4)),
        ("student-1 / DDIM-1", "≤ 0.3", (1, 1, 1)),
    ):
        values = [
            get(r, f"student-{n}", steps, 1)[FD] / get(r, "teacher", other, 1)[FD] for r in reports
        ]
        line(f"{name}, fd_digits, w = 1", bound, values)
    values = [
        get(r, "student-4", 4, 1)["variance"] / get(r, "teacher", 256, 1)["variance"]
        for r in reports
    ]
    line("student-4 / teacher, variance, w = 1", "≥ 0.8", values)
    right = [sum(m.index(min(m)) == i for i, m in enumerate(k["matrix"])) for k in knobs]
    line("w x w: rows with the smallest on the diagonal", "4", [float(v) for v in right])


def main(paths: list[str]) -> None:
    data = [json.loads(Path(p).read_text(encoding="utf-8")) for p in paths]
    table([d["rows"] for d in data])
    ratios([d["rows"] for d in data], [d["knob"] for d in data])
    for d in data:
        print("\n" + "; ".join(f"{k} {v}" for k, v in d["facts"].items()))


if __name__ == "__main__":
    main(sys.argv[1:])
