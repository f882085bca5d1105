"""Every row of the comparisons shows the cells of its own model, run and w."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from studies.cells import DDIM, Line
from studies.common import StudyError
from studies.comparisons import COMPARISONS, STOCHASTIC
from tests.studies.reports import Figures, rows, write_report

from studies import comparisons

LINES = list(dict.fromkeys(e.line for c in COMPARISONS for e in c.entries))
WS = sorted({w for c in COMPARISONS for w in c.ws})


def figures_of(run: int) -> Figures:
    def figures(line: Line, w: float) -> dict[str, Any]:
        recall = None if w == 4 else 0.5
        fd = 100 * run + LINES.index(line) + w / 10
        return {"fd_x": fd, "recall": recall, "variance": 7.25, "rms_to_teacher": w / 100}

    return figures


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    out = []
    for run, name in enumerate("abc"):
        facts = {"run": name}
        write_report(tmp_path / name, rows(LINES, WS, figures_of(run)), facts=facts)
        out.append(str(tmp_path / name))
    return out


def test_the_rows_are_those_of_the_page(
    folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    comparisons.main(folders)
    text = capsys.readouterr().out
    page = Path(comparisons.__file__).parents[1] / "docs" / "results" / "comparisons.md"
    names = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ")]
    published = page.read_text(encoding="utf-8").splitlines()
    assert names == [line.split("|")[1:3] for line in published if line.startswith("| ")]
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        line for line in published if line.startswith("## ")
    ]


def test_a_row_shows_its_own_cells(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    comparisons.main(folders)
    lines = capsys.readouterr().out.splitlines()
    assert (
        "| | evaluations | fd_x, w = 0.5, 1, 2.5 | paired distance | recall | variance |" in lines
    )
    eight = LINES.index(Line("student-8", DDIM, 8))
    noisy = LINES.index(Line("student-8", STOCHASTIC, 8))
    unipc = LINES.index(Line("teacher", "unipc", 2))
    alone = f"| w = 1 alone, 8 steps | 8 | {100 + eight}.10 | 0.010 | 0.50 | 7.2 |"
    assert alone in lines
    found = " ".join(f"{200 + eight + w / 10:.2f}" for w in (0.5, 1.0, 2.5))
    assert any(line.startswith(f"| all features, 8 steps | 8 | {found} |") for line in lines)
    found = " ".join(f"{noisy + w / 10:.2f}" for w in (0.0, 1.0, 2.0, 4.0))
    assert any(line.startswith(f"| stochastic, 8 steps | 8 | {found} |") for line in lines)
    found = f"{unipc}.10 {unipc}.40 | 0.010 0.040 | 0.50 - | 7.2 7.2 |"
    assert f"| UniPC, 2 steps | 4 | {found}" in lines
    assert lines[-5:] == ["run a", "", "run b", "", "run c"]


def test_a_run_that_lacks_a_cell_is_refused(folders: list[str], tmp_path: Path) -> None:
    short = [line for line in LINES if not line.model.startswith("direct")]
    write_report(tmp_path / "a", rows(short, WS, figures_of(0)))
    with pytest.raises(StudyError, match="direct-4-of-8, deterministic, 4 at w = 0"):
        comparisons.main(folders)
