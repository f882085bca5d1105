"""A tiny run, made once through the command line, that the tests look at."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

TINY = {
    "name": "tiny",
    "data": {"name": "digits"},
    "network": {"channels": [8, 16], "groups": 4, "w_dim": 32},
    "teacher": {"updates": 30, "batch_size": 16, "checkpoint_every": 10, "log_every": 5},
    "distill": {
        "batch_size": 16,
        "updates": 10,
        "checkpoint_every": 5,
        "log_every": 5,
        "stages": [
            {"parent": "teacher", "updates": 10},
            {"parent": "stage-one", "steps": 4},
            {"parent": "student-4", "steps": 2},
            {"parent": "stage-one", "steps": 4, "stride": 2},
            {"parent": "stage-one", "steps": 4, "direction": "encode"},
        ],
    },
    "evaluate": {
        "w": [0, 1],
        "samples": 40,
        "reference_steps": 8,
        "teacher_steps": [4, 2],
        "stage_one_steps": [4],
        "solver_steps": [4],
        "batch_size": 40,
    },
}

# Python code: the command line, which gets a signal in an update. SIGNAL UPDATE COMMAND...
SIGNALLED = """
import signal, sys
from fewstep.cli.main import entry
from fewstep.train.loop import _Loop

_, number, update, *sys.argv[1:] = sys.argv
real = _Loop._part_loss

def part_loss(self, at, part):
    if at == int(update):
        signal.raise_signal(signal.Signals[number])
    return real(self, at, part)

_Loop._part_loss = part_loss
entry()
"""


@pytest.fixture(scope="module", autouse=True)
def _features(trained_once: None) -> None:
    """The features of the digits are the same in every test."""


def fewstep(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, in a folder, and return what a shell would see.

    An error that `main` does not turn into one line is raised, as it is nowhere to be expected.
    Commands that need a process of their own take the fixture `forks`.
    """
    from fewstep.cli.main import main

    out, err, given = io.StringIO(), io.StringIO(), [str(a) for a in arguments]
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["fewstep", *given])
        for name, value in environment.items():
            patch.setenv(name, value)
        code = main(given)
    return subprocess.CompletedProcess(given, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="session")
def run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the tiny recipe."""
    cwd = tmp_path_factory.mktemp("work")
    for command in ("train", "distill"):
        done = fewstep(command, recipe, "--out", "run", cwd=cwd)
        assert done.returncode == 0, done.stderr
    return cwd / "run"
