"""The documentation is that of the code: generated pages, quoted errors, and the navigation."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from studies.common import DOCS

from fewstep.cli.main import main
from studies import notebook, reference

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
    quoted = [
        m
        for row in re.findall(r"^\| (.*?) \|", page, re.MULTILINE)
        for m in re.findall(r"`(.+?)`", row)
    ]
    assert len(quoted) > 25
    code = texts()
    missing = [
        text
        for text in quoted
        if not re.search(
            r"[^\n]*".join(map(re.escape, (p.strip() for p in text.split("...") if p.strip()))),
            code,
        )
    ]
    assert missing == []


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md") if p.parent.name != "bench"}
    assert {p for p in pages if not re.search(rf"[:-] {re.escape(p)}$", nav, re.MULTILINE)} == set()


# Settings that make every run of the pages a matter of seconds.
TINY = (
    *(
        "network.channels=[8,8]",
        "network.time_dim=32",
        "teacher.updates=3",
        "teacher.batch_size=16",
    ),
    *("distill.batch_size=16", "distill.updates=2", "distill.stages.0.updates=2"),
    *("evaluate.samples=40", "evaluate.w=[0,1]"),
)
SETTINGS = [part for setting in TINY for part in ("--set", setting)]


def run_block(language: str, code: str, names: dict[str, Any]) -> None:
    """Run a block of a page: Python as it stands, commands with tiny settings."""
    if language == "python":
        exec(compile(code.replace("updates=200", "updates=2"), "page", "exec"), names)
        return
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["fewstep"] and words[1] != "play":
            recipe = words[1] in ("train", "distill", "report")
            assert main(words[1:] + (SETTINGS if recipe else [])) == 0


def blocks(page: str) -> list[tuple[str, str]]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [(m[1], m[2]) for m in notebook.BLOCK.finditer(text)]


def test_the_tutorial_and_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 8
    names: dict[str, Any] = {}
    for cell in code:
        run_block(
            "bash" if cell.startswith("!") else "python", cell.replace("!fewstep", "fewstep"), names
        )
    assert names["drawn"].shape == (10, 1, 8, 8)
    assert (tmp_path / "guidance.png").is_file()
    # What `make demo` leaves is what the tutorial's run is.
    (tmp_path / "runs" / "tutorial").rename(tmp_path / "runs" / "demo")
    for language, text in blocks("README.md"):
        run_block(language, text, names)
    assert names["pictures"][1].size == (8, 8)
    assert (tmp_path / "digits.png").is_file()


def test_the_notebook_is_that_of_the_tutorial() -> None:
    now = notebook.notebook((DOCS / "tutorial.md").read_text(encoding="utf-8"))
    advice = "run `python -m studies notebook docs/tutorial.md docs/tutorial.ipynb`"
    assert now == (DOCS / "tutorial.ipynb").read_text(encoding="utf-8"), advice
