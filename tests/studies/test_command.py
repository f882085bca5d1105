"""`python -m studies`: every study is listed, documented, and stops with a message."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from studies.__main__ import STUDIES, main

import studies

FOLDER = Path(studies.__file__).parent
SHARED = {"__init__", "__main__", "cells", "common", "cost_to_quality_plans", "stock_drawing"}


def test_every_file_is_a_study_or_shared() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == SHARED | set(STUDIES)


def test_the_list_names_every_study(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m studies NAME")
    assert all(f"  {name} " in text for name in STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_shows_its_exact_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"    python -m studies {name} " in str(
        importlib.import_module(f"studies.{name}").__doc__
    )
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m studies {name} ")
    assert f"    python -m studies {name} " in text


def test_an_unknown_study_and_a_missing_file_end_with_a_message(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"NAME must be one of table, .* got tables"):
        main(["tables"])
    with pytest.raises(SystemExit, match="is not a file"):
        main(["table", str(tmp_path / "report.json")])
