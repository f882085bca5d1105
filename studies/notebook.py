"""Make a notebook of a Markdown page: its code blocks become cells.

    python -m studies notebook docs/tutorial.md docs/tutorial.ipynb

A test compares the notebook with the page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from studies.common import StudyError, argument_parser

BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)


def main(arguments: Sequence[str]) -> None:
    """Write the notebook."""
    parser = argument_parser("notebook", __doc__ or "")
    parser.add_argument("page", type=Path, help="Markdown")
    parser.add_argument("out", type=Path, help="the .ipynb to write")
    given = parser.parse_args(arguments)
    if given.out.suffix != ".ipynb":
        raise StudyError(f"the notebook must be an .ipynb file, got {given.out}. Rename it.")
    given.out.write_text(notebook(given.page.read_text(encoding="utf-8")), encoding="utf-8")


def notebook(page: str) -> str:
    """Return the notebook of a page, as JSON of format 4.5. Commands get the `!` of IPython."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    out = {
        "cells": [{"id": f"cell-{k}", **cell} for k, cell in enumerate(_cells(page))],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(out, indent=1, ensure_ascii=False) + "\n"


def _cells(page: str) -> Iterator[dict[str, Any]]:
    end = 0
    for block in BLOCK.finditer(page):
        yield from _text(page[end : block.start()])
        lines = block[2].strip().splitlines(keepends=True)
        if block[1] == "bash":
            lines = [f"!{line}" for line in lines]
        yield {
            "cell_type": "code",
            "execution_count": None,
            "metadata": {},
            "outputs": [],
            "source": lines,
        }
        end = block.end()
    yield from _text(page[end:])


def _text(part: str) -> Iterator[dict[str, Any]]:
    if part.strip():
        lines = part.strip().splitlines(keepends=True)
        yield {"cell_type": "markdown", "metadata": {}, "source": lines}
