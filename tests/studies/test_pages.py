"""The tables of the pages are what the studies print from the published figures."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from studies.common import DOCS
from tests.studies.reports import write_report

from studies import cost_to_quality, quality, table

DATA = DOCS / "results" / "data"
WHOLE = {"steps", "evaluations", "seed", "training_evaluations"}


def published(name: str) -> list[dict[str, Any]]:
    """The rows of a CSV of the pages."""
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return [{k: _value(k, v) for k, v in row.items()} for row in csv.DictReader(file)]


def _value(key: str, text: str) -> Any:
    if key in ("model", "sampler", "data", "plan"):
        return text
    return int(text) if key in WHOLE else float(text)


def figures(text: str) -> list[str]:
    """The rows of the tables that begin with a measured line, without emphasis."""
    return [line.replace("*", "") for line in text.splitlines() if line.startswith("| ")]


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    for folder in ("results/data", "images"):
        (tmp_path / "docs" / folder).mkdir(parents=True)
    return tmp_path / "docs"


def test_cells_and_ratios(tmp_path: Path) -> None:
    path = write_report(tmp_path, published("cifar10-small.csv"))
    cells, ratios, _ = table.seeds([table.Report.read(path)]).split("\n\n")
    page = figures((DOCS / "results" / "cifar10-small.md").read_text(encoding="utf-8"))
    assert [line for line in figures(cells) if line not in page] == []
    assert "| student-4 / teacher, 64 steps, fd_cifar10, w = 1 | 0.853 |" in ratios

    path = write_report(tmp_path, published("latent-small.csv"))
    text = table.at_best_w(table.Report.read(path))
    page = figures((DOCS / "results" / "latent-small.md").read_text(encoding="utf-8"))
    cells = text.split("\n\n")[0]
    assert [line for line in figures(cells) if line not in page] == []
    assert "the teacher's best w: 2" in text
    assert "| student-4, deterministic, 4 | 0.998 | -0.9 |" in text


def test_quality(tmp_path: Path, docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = []
    for name, fd in (("digits", "fd_digits"), ("cifar10-small", "fd_cifar10")):
        folder = tmp_path / f"study-quality-{name}"
        folder.mkdir()
        rows = [dict(r) for r in published("quality.csv") if r.pop("data") == name]
        (folder / quality.ROWS).write_text(json.dumps([{**r, fd: r.pop("fd")} for r in rows]))
        folders.append(folder)
    quality.write(folders, docs)
    assert (docs / "results/data/quality.csv").read_bytes() == (DATA / "quality.csv").read_bytes()
    page = figures((DOCS / "results" / "quality.md").read_text(encoding="utf-8"))
    printed = figures(capsys.readouterr().out)
    assert len(printed) > 60
    assert [line for line in printed if line not in page] == []


def test_cost_to_quality(tmp_path: Path, docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds: dict[Path, list[dict[str, Any]]] = {}
    for row in published("cost-to-quality.csv"):
        plan, seed = row.pop("plan"), row.pop("seed")
        row |= {"model": f"{plan}/seed-{seed}", "sampler": "deterministic", "steps": 4}
        row |= {"evaluations": 4}
        del row["training_evaluations"]
        seeds.setdefault(tmp_path / plan / f"seed-{seed}", []).append(row)
    for folder, rows in seeds.items():
        folder.mkdir(parents=True)
        (folder / cost_to_quality.ROWS).write_text(json.dumps(rows))
    cost_to_quality.main(["write", str(tmp_path), "--docs", str(docs)])
    name = "cost-to-quality.csv"
    assert (docs / "results" / "data" / name).read_bytes() == (DATA / name).read_bytes()
    page = figures((DOCS / "lab" / "cost-to-quality.md").read_text(encoding="utf-8"))
    printed = figures(capsys.readouterr().out)
    assert len(printed) > 20
    assert [line for line in printed if line not in page] == []
