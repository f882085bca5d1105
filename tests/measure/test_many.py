"""Several processes measure what one does: the same images, the same figures, one writer."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.forks import Forks
from tests.recipes.making import image_folder
from tests.train.test_processes import start

from fewstep.measure.database import Results
from fewstep.metrics.digits_features import FILE

FEWSTEP = ("-m", "fewstep")
RECIPE = {
    "name": "two",
    "data": {"name": "digits"},
    "network": {"channels": [8, 16], "groups": 4, "w_dim": 32},
    "teacher": {"updates": 4, "batch_size": 8, "log_every": 2},
    "distill": {"batch_size": 8, "updates": 2, "log_every": 2,
                "stages": [{"parent": "teacher"}, {"parent": "stage-one", "steps": 2}]},
    "evaluate": {"w": [1], "samples": 42, "batch_size": 10, "reference_steps": 4,
                 "teacher_steps": [2], "stage_one_steps": [2], "solver_steps": [2]},
}  # fmt: skip
# Runs the command line after a change that is made in the process of one rank alone.
CHANGED = """
import os, signal, sys
from fewstep.cli.main import entry
from fewstep.errors import NonFiniteError
from fewstep.measure import dealing, drawing

def lost(*_):
    raise NonFiniteError("2 of 10 samples are infinite.")

def fails(*_):
    raise RuntimeError("a fault of one process")

calls = 0
plain = dealing.gathered

def killed(value):
    global calls
    calls += 1
    if calls == 5:  # in the second of three cells, after the reference and the redrawn teacher
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(value)

what, rank = sys.argv.pop(1), sys.argv.pop(1)
if os.environ.get("RANK") == rank:
    if what == "killed":
        dealing.gathered = killed
    else:
        drawing.check_finite_images = {"lost": lost, "fails": fails}[what]
entry()
"""

# One cell, with nothing opened before it.
ALONE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.recipes.making import guided, teacher
from fewstep.data import DataConfig
from fewstep.measure.evaluate import Evaluation
from fewstep.train import leave, processes

processes("cpu")
folder = Path(sys.argv[1])
config = DataConfig(name=str(folder / "pets"), held_out=0.0)
Evaluation(config, folder / "e", samples=6).cell("t", guided(teacher()), w=1.0, steps=2)
leave()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, from nothing to its report by torchrun."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "two.yaml").write_text(yaml.safe_dump(RECIPE))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*launcher, *report(folder, folder / "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("report: ") == 1
    return folder


def report(folder: Path, out: Path) -> list[str]:
    return [*FEWSTEP, "report", str(folder / "two.yaml"), "--device", "cpu", "--out", str(out)]


def rows_of(path: Path) -> list[dict[str, Any]]:
    read = json.loads(path.read_text())
    rows = read["rows"] if isinstance(read, dict) else read
    return [{k: v for k, v in row.items() if k != "seconds_per_image"} for row in rows]


def check_close(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> None:
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for key, value in left.items():
            same = value if isinstance(value, str | None) else pytest.approx(value, rel=1e-6)
            assert right[key] == same, key


def give_features(run: Path, folder: Path) -> None:
    """Put the trained features of the digits where an evaluation looks for them."""
    folder.mkdir(parents=True)
    shutil.copy(run / "two" / "evaluation" / FILE, folder)


def test_a_report_under_torchrun_is_that_of_one_process(forks: Forks, run: Path) -> None:
    out, one = run / "two", run / "one"
    assert (out / "report.html").is_file()
    # What two processes have trained, measured by one.
    shutil.copytree(out, one)
    shutil.rmtree(one / "evaluation")
    give_features(run, one / "evaluation")
    assert start(forks, 1, *report(run, one))[0][0] == 0
    check_close(rows_of(out / "report.json"), rows_of(one / "report.json"))
    cells = sorted((one / "evaluation" / "cells").iterdir())
    assert len(cells) == 6
    for path in cells:
        assert path.read_bytes() == (out / "evaluation" / "cells" / path.name).read_bytes()


def evaluate(run: Path, out: Path) -> tuple[object, ...]:
    if not out.exists():
        give_features(run, out)
    models = [run / "two" / name for name in ("student-2", "teacher")]
    settings = ("--steps", 2, "--w", "1", "--samples", 14, "--device", "cpu", "--out", out)
    return ("evaluate", *models, "--teacher", models[1], "--reference-steps", 4, *settings)


@pytest.fixture(scope="module")
def alone(forks: Forks, run: Path) -> list[dict[str, Any]]:
    done = start(forks, 1, *FEWSTEP, *evaluate(run, run / "alone"))
    assert done[0][0] == 0, done[0][1]
    return rows_of(run / "alone" / "evaluation.json")


def test_three_processes_measure_what_one_does(
    forks: Forks, run: Path, alone: list[dict[str, Any]]
) -> None:
    done = start(forks, 3, *FEWSTEP, *evaluate(run, run / "three"))
    assert [code for code, _ in done] == [0, 0, 0], done
    check_close(rows_of(run / "three" / "evaluation.json"), alone)
    assert done[0][1].count(": fd_digits") == 3
    assert done[1][1] == done[2][1] == ""


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_killed_evaluation_goes_on_cell_by_cell(
    forks: Forks, run: Path, alone: list[dict[str, Any]], rank: str
) -> None:
    out = run / f"killed-{rank}"
    done = start(forks, 2, "-c", CHANGED, "killed", rank, *evaluate(run, out))
    assert done[int(rank)][0] == -signal.SIGKILL
    code, said = done[1 - int(rank)]
    assert code == 1
    assert said.splitlines()[-1].startswith(f"fewstep: process {1 - int(rank)} of 2 stops: another")
    done = start(forks, 2, *FEWSTEP, *evaluate(run, out))
    assert [code for code, _ in done] == [0, 0], done
    assert done[0][1].count(": fd_digits") == 2  # the others were there
    check_close(rows_of(out / "evaluation.json"), alone)


def test_a_process_that_fails_takes_the_others_down(forks: Forks, run: Path) -> None:
    done = start(forks, 2, "-c", CHANGED, "fails", "1", *evaluate(run, run / "fails"))
    assert [code for code, _ in done] == [1, 1]
    assert "a fault of one process" in done[1][1]
    assert "process 0 of 2 stops: another one died" in done[0][1]


def test_a_cell_alone_is_made_by_all_processes(forks: Forks, tmp_path: Path) -> None:
    image_folder(tmp_path / "pets")
    done = start(forks, 2, "-c", ALONE, tmp_path, Path(__file__).parents[2])
    assert [code for code, _ in done] == [0, 0], done
    (record,) = Results(tmp_path / "e" / "results.sqlite").records()
    assert record.device is not None
    assert record.device.endswith(", 2 processes")


def test_images_that_are_not_finite_in_one_process_are_so_in_all(forks: Forks, run: Path) -> None:
    done = start(forks, 2, "-c", CHANGED, "lost", "1", *evaluate(run, run / "lost"))
    assert [code for code, _ in done] == [0, 0], done
    rows = rows_of(run / "lost" / "evaluation.json")
    assert all(row["fd_digits"] is None for row in rows)
    assert "2 of 10 samples are infinite." in (run / "lost" / "table.md").read_text()
