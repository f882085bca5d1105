"""Print the tables of docs/results/latent-small.md from the report.json of a run.

python docs/results/latent.py runs/latent-small/report.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fewstep.metrics import distance_key

Row = dict[str, Any]


def main(path: Path) -> None:
    told = json.loads(path.read_text(encoding="utf-8"))
    rows = [r for r in told["rows"] if r["w"] is not None]
    fd = distance_key(rows[0])
    ws = sorted({r["w"] for r in rows})
    cells = list(dict.fromkeys((r["model"], r["sampler"], r["steps"]) for r in rows))

    def of(cell: tuple[str, str, int], key: str) -> list[float]:
        found = {r["w"]: r[key] for r in rows if (r["model"], r["sampler"], r["steps"]) == cell}
        return [found[w] for w in ws]

    print(f"| model, sampler, steps (evaluations) | {fd} | accuracy | paired distance |")
    print("| --- | --- | --- | --- |")
    for cell in cells:
        count = next(r for r in rows if (r["model"], r["sampler"], r["steps"]) == cell)
        columns = [
            " ".join(f"{v:.{d}f}" for v in of(cell, key))
            for key, d in ((fd, 2), ("accuracy", 3), ("rms_to_teacher", 3))
        ]
        print(f"| {', '.join(map(str, cell))} ({count['evaluations']}) | {' | '.join(columns)} |")
    many = max((c for c in cells if c[0] == "teacher"), key=lambda c: c[2])
    best = min(range(len(ws)), key=lambda i: of(many, fd)[i])
    print(f"\nw = {', '.join(f'{w:g}' for w in ws)}; the teacher's best w: {ws[best]:g}\n")
    print("| at the teacher's best w | distance over the teacher's | accuracy, points |")
    print("| --- | --- | --- |")
    for cell in cells:
        if cell == many:
            continue
        ratio = of(cell, fd)[best] / of(many, fd)[best]
        points = 100 * (of(cell, "accuracy")[best] - of(many, "accuracy")[best])
        print(f"| {', '.join(map(str, cell))} | {ratio:.3f} | {points:+.1f} |")
    held = next((r for r in told["rows"] if r["model"] == "held-out"), None)
    if held is not None:
        print(f"\nheld-out images: {fd} {held[fd]:.2f}, accuracy {held['accuracy']:.3f}")
    print("; ".join(f"{k} {v}" for k, v in told["facts"].items()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
