"""Rows of figures as text: aligned for a terminal, Markdown for a page, CSV for a program."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def aligned(rows: Sequence[Row]) -> str:
    """Return the rows as aligned columns."""
    keys = list(rows[0])
    text = [keys, *([_cell(row[k]) for k in keys] for row in rows)]
    widths = [max(len(line[i]) for line in text) for i in range(len(keys))]
    return "\n".join(
        "  ".join(c.rjust(n) for c, n in zip(line, widths, strict=True)) for line in text
    )


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, numbers to the right."""
    keys = list(rows[0])
    lines = [keys, ["---:" if k not in ("model", "sampler") else "---" for k in keys]]
    lines += [[_cell(row[k]) for k in keys] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def comma_separated(rows: Sequence[Row]) -> str:
    """Return the rows as CSV at full precision; an empty field where there is no such figure."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
