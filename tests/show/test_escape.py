"""Names that try to be markup, formulas or control codes stay names in every format."""

from __future__ import annotations

import csv
import io
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.measure.cell import Cell, Cells, Row
from fewstep.metrics import Figures
from fewstep.show.escape import in_csv, in_html, in_markdown, in_plot, printable
from fewstep.show.plots import against_evaluations, loss_curves
from fewstep.show.tables import aligned, comma_separated, markdown

law = settings(deadline=None, derandomize=True, max_examples=60)
NASTY = ("<img src=x onerror=alert(1)>", '" onload="x', "a|b", "`rm`", "[x](http://e)", "=1+1",
         "+A1", "-2+3", "@SUM(1)", "\t=1", "line\nbreak", "\x1b[31mred", "\u202egnp", "\udcff",
         "_hidden", "$x^{", "**bold**", "{name}")  # fmt: skip


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@law
@given(st.one_of(st.sampled_from(NASTY), st.text()))
def test_a_name_in_html_is_text(name: str) -> None:
    parser = Tags()
    parser.feed(f"<p title='{in_html(name)}'>{in_html(name)}")
    parser.close()
    assert parser.tags == ["p"]
    assert parser.text == printable(name)
    assert printable(name).isprintable()


@law
@given(st.one_of(st.sampled_from(NASTY), st.text()))
def test_a_name_in_csv_is_no_formula_and_one_field(name: str) -> None:
    rows: list[Row] = [{"model": name, "fd": -0.5}]
    ((_, *_), (field, figure)) = csv.reader(io.StringIO(comma_separated(rows)))
    assert not field.lstrip().startswith(("=", "+", "-", "@", "＝"))
    assert field.removeprefix("'") == printable(name) or field == printable(name)
    assert float(figure) == -0.5  # a number stays one
    assert in_csv("student-4") == "student-4"


@law
@given(st.one_of(st.sampled_from(NASTY), st.text()))
def test_a_name_in_a_table_keeps_its_columns(name: str) -> None:
    rows: list[Row] = [{"model": name, "w": 1.0}]
    head, rule, line = markdown(rows).splitlines()
    bars = [i for i, c in enumerate(line) if c == "|" and line[i - 1 : i] != "\\"]
    assert len(bars) == 3 == head.count("|") == rule.count("|")
    assert "<" not in line
    assert len(aligned(rows).splitlines()) == 2
    assert all(c.isprintable() for c in aligned(rows).replace("\n", ""))


@pytest.mark.parametrize(
    ("name", "written"),
    [("a_b", "a_b"), ("_a_", "\\_a\\_"), ("a*b", "a\\*b"), ("a & b", "a &amp; b")],
)
def test_markdown_escapes_what_is_markup(name: str, written: str) -> None:
    assert in_markdown(name) == written


def test_plots_take_any_name() -> None:
    cells = Cells(Cell(name, "heun", 4, 1.0, 4, Figures("fid", 2.0)) for name in NASTY)
    svg = against_evaluations(cells, "fid", "<b>$fd_{", 1.0)
    svg += loss_curves({name: [(1, 0.5), (2, 0.4)] for name in NASTY})
    assert "<img" not in svg
    assert "<b>" not in svg
    assert "$x^{" in svg
    assert in_plot("_hidden").strip() == "_hidden"
    assert "_hidden" in svg
