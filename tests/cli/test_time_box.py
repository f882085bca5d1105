"""`--for`: commands stop when their time is up, and the same command continues to the same bits."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from tests.cli.conftest import fewstep
from tests.cli.test_cli import one_line_error

from fewstep.cli import options

RECIPE = {
    "name": "boxed",
    "data": {"name": "digits"},
    "network": {"channels": [8, 16], "groups": 4, "w_dim": 32, "dropout": 0.1},
    "teacher": {"updates": 3, "batch_size": 8},
    "distill": {
        "batch_size": 8,
        "updates": 2,
        "stages": [{"parent": "teacher"}],
    },
    "evaluate": {"w": [0], "samples": 20, "reference_steps": 2, "teacher_steps": [],
                 "stage_one_steps": [2], "batch_size": 20},
}  # fmt: skip
MODELS = ("teacher", "stage-one")


def figures(out: Path) -> list[Any]:
    with closing(sqlite3.connect(out / "evaluation" / "results.sqlite")) as db:
        return db.execute("SELECT key, figures FROM cells ORDER BY key").fetchall()


def test_a_report_in_pieces_is_the_report_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "boxed.yaml").write_text(yaml.safe_dump(RECIPE))
    command = ("report", "boxed.yaml", "--for", "5m", "--out")
    assert fewstep(*command, "whole", cwd=tmp_path).returncode == 0
    monkeypatch.setattr(options, "seconds_of", lambda text, name: 1e-9)
    said = []
    while (done := fewstep(*command, "pieces", cwd=tmp_path)).returncode:
        assert done.returncode == 75
        one_line_error(done, "run the same command to continue: fewstep report boxed.yaml --for 5m")
        said.append(done.stderr.splitlines()[-1])
        assert len(said) < 20
    # The last update of a stage is its end; the first of the next one is made in the same call.
    assert [line.split(",")[0] for line in said] == [
        "fewstep: time is up at update 1 of 3",
        "fewstep: time is up at update 2 of 3",
        "fewstep: time is up at update 1 of 2",
        "fewstep: time is up after the samples of the teacher's 2 steps with another seed at w = 0",
        "fewstep: time is up after the cell of teacher at 2 steps and w = 0",
        "fewstep: time is up after the cell of stage-one at 2 steps and w = 0",
    ]
    for name in MODELS:
        part = f"{name}/unet/diffusion_pytorch_model.safetensors"
        a, b = (load_file(tmp_path / run / part) for run in ("whole", "pieces"))
        assert all(a[k].equal(b[k]) for k in a)
    assert figures(tmp_path / "whole") == figures(tmp_path / "pieces")
    rows = [
        json.loads((tmp_path / r / "report.json").read_text())["rows"] for r in ("whole", "pieces")
    ]
    for row in (*rows[0], *rows[1]):
        row.pop("seconds_per_image")
    assert rows[0] == rows[1]

    again = ("evaluate", "pieces/stage-one", "--w", "0,1", "--steps", 1)
    again += ("--samples", 20, "--for", "1h30m")
    for w in (0, 1):
        done = fewstep(*again, cwd=tmp_path)
        assert done.returncode == 75, done.stderr
        one_line_error(done, f"the cell of stage-one at 1 steps and w = {w}", "evaluate pieces/")


@pytest.mark.parametrize("command", ["train", "distill", "report"])
@pytest.mark.parametrize("time", ["0", "5x"])
def test_a_time_that_is_none_is_one_line(tmp_path: Path, command: str, time: str) -> None:
    done = fewstep(command, "digits", "--for", time, cwd=tmp_path)
    assert done.returncode == 1
    one_line_error(done, "--for must be a time above 0", f"got '{time}'", "Pass 5m")
    assert list(tmp_path.iterdir()) == []
