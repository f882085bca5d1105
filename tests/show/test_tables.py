"""Rows as text: aligned, Markdown and CSV."""

from __future__ import annotations

from fewstep.measure.cell import Row
from fewstep.show.tables import aligned, comma_separated, markdown


def test_a_table_three_ways() -> None:
    rows: list[Row] = [{"model": "teacher", "w": 0.5, "fd": 1 / 3, "rms": None}]
    assert aligned(rows).splitlines()[1].split() == ["teacher", "0.5", "0.3333", "-"]
    assert markdown(rows).splitlines()[1:] == ["| --- | ---: | ---: | ---: |",
                                               "| teacher | 0.5 | 0.3333 | - |"]  # fmt: skip
    assert comma_separated(rows) == "model,w,fd,rms\nteacher,0.5,0.3333333333333333,\n"
