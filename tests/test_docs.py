"""The documentation is that of the code: generated pages, quoted errors, and the navigation."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from studies.common import DOCS

from studies import reference

ROOT = DOCS.parent


@pytest.mark.parametrize("page", ["recipe-keys.md", "cli.md"])
def test_the_reference_is_that_of_the_code(page: str, tmp_path: Path) -> None:
    reference.main([str(tmp_path)])
    now = (tmp_path / page).read_text(encoding="utf-8")
    committed = (DOCS / "reference" / page).read_text(encoding="utf-8")
    assert now == committed, "run `python -m studies reference docs/reference`"


def texts() -> str:
    """All texts of the code; what an f-string inserts is a NUL."""
    found = []
    for file in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "\0" for v in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_quoted_errors_are_errors_of_the_code() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [m for row in re.findall(r"^\| (.*?) \|", page, re.MULTILINE) for m in re.findall(r"`(.+?)`", row)]
    assert len(quoted) > 25
    code = texts()
    missing = [
        text
        for text in quoted
        if not re.search(r"[^\n]*".join(map(re.escape, (p.strip() for p in text.split("...") if p.strip()))), code)
    ]
    assert missing == []


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md")}
    assert {p for p in pages if not re.search(rf"[ :] {re.escape(p)}$", nav, re.MULTILINE)} == set()
