"""The picture of docs/architecture.md is that of the code."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies.common import StudyError

from studies import architecture

PICTURE = architecture.ROOT / "docs" / "images" / "architecture.svg"


def test_the_committed_picture_is_that_of_the_code(tmp_path: Path) -> None:
    architecture.main([str(tmp_path / "now.svg")])
    now = (tmp_path / "now.svg").read_text(encoding="utf-8")
    advice = f"run `python -m studies architecture {PICTURE.relative_to(architecture.ROOT)}`"
    assert now == PICTURE.read_text(encoding="utf-8"), advice


def test_lines_go_down_and_none_follows_from_others() -> None:
    rows, graph = architecture.layers(), architecture.imports()
    level = {name: k for k, row in enumerate(rows) for name in row}
    assert level.keys() == graph.keys()
    for name, direct in graph.items():
        assert all(level[other] > level[name] for other in direct)
        for other in direct:
            assert all(other not in architecture.reached(graph, via) for via in direct - {other})


def test_another_kind_of_file_is_refused() -> None:
    with pytest.raises(StudyError, match=r"\.svg"):
        architecture.main(["picture.png"])
