"""Rows of figures as text: aligned for a terminal, Markdown for a page, CSV for a program."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from fewstep.measure.cell import Row
from fewstep.show.escape import in_csv, in_markdown, printable

# (row, key) -> numbers of the warnings about that figure; row None is the whole column.
Marks = Mapping[tuple[int | None, str], Sequence[int]]


def aligned(rows: Sequence[Row], marks: Marks | None = None) -> str:
    """Return the rows as aligned columns; "-" where there is no figure."""
    text = [[printable(c) for c in line] for line in _lines(rows, marks or {})]
    widths = [max(len(line[i]) for line in text) for i in range(len(text[0]))]
    return "\n".join(
        "  ".join(c.rjust(n) for c, n in zip(line, widths, strict=True)) for line in text
    )


def markdown(rows: Sequence[Row], marks: Marks | None = None) -> str:
    """Return the rows as a Markdown table with numbers on the right."""
    head, *body = ([in_markdown(c) for c in line] for line in _lines(rows, marks or {}))
    rule = ["---:" if k not in ("model", "sampler") else "---" for k in rows[0]]
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, rule, *body])


def comma_separated(rows: Sequence[Row]) -> str:
    """Return the rows as CSV at full precision; an empty field where there is no such figure."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([in_csv(k) for k in rows[0]])
    for row in rows:
        values = [row[k] for k in rows[0]]
        writer.writerow([in_csv(v) if isinstance(v, str) else v for v in values])
    return buffer.getvalue()


def mark(numbers: Sequence[int]) -> str:
    """Return the mark of warnings beside a figure: " (1, 3)"; nothing for none."""
    return f" ({', '.join(map(str, numbers))})" if numbers else ""


def _lines(rows: Sequence[Row], marks: Marks) -> list[list[str]]:
    keys = list(rows[0])
    lines = [[k + mark(marks.get((None, k), ())) for k in keys]]
    for i, row in enumerate(rows):
        lines.append([_cell(row[k]) + mark(marks.get((i, k), ())) for k in keys])
    return lines


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
