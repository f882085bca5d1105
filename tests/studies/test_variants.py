"""One student in several runs, beside their teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies.cells import DDIM, Line
from tests.studies.reports import rows, write_report

from studies import variants

TEACHER, STUDENT = Line("teacher", DDIM, 50), Line("student-4", DDIM, 4)


def report(folder: Path, fd: float) -> Path:
    made = rows([TEACHER, STUDENT], [4.0, 10.0], lambda line, w: {"fd_x": fd + w, "recall": 0.5})
    return write_report(folder, made)


def test_each_run_is_a_row_below_the_teachers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [report(tmp_path / name, fd) for name, fd in (("order-1", 2.0), ("order-2", 1.0))]
    variants.main([str(p) for p in paths])
    lines = capsys.readouterr().out.splitlines()
    head = "| w = 4, 10 | fd_x | paired distance | accuracy | recall | variance |"
    assert lines[0] == head
    assert lines[2:5] == [
        "| teacher, deterministic, 50 | 6.00 12.00 | - - | - - | 0.50 0.50 | - - |",
        "| order-1 | 6.00 12.00 | - - | - - | 0.50 0.50 | - - |",
        "| order-2 | 5.00 11.00 | - - | - - | 0.50 0.50 | - - |",
    ]
    assert lines[-1] == "order-2: device a test"


def test_rows_of_folders_with_one_name_have_the_folder_above_too() -> None:
    paths = [Path(f"/runs/{seed}/slow/report.json") for seed in ("seed-0", "seed-1")]
    assert variants.names(paths) == ["seed-0/slow", "seed-1/slow"]
