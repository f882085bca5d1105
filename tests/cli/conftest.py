"""A tiny run, made once through the command line, that the tests look at."""

from __future__ import annotations

import os
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

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def fewstep(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "fewstep.cli.main", *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


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
