"""SIGKILL at ten random moments of teacher, stage one and stage two: the same bits, every time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml
from safetensors.torch import load_file

RECIPE = {
    "name": "killed",
    "network": {"channels": [8, 16], "groups": 4, "w_dim": 32, "dropout": 0.1},
    "teacher": {"updates": 90, "batch_size": 8, "checkpoint_every": 7, "log_every": 3},
    "distill": {
        "batch_size": 8,
        "updates": 60,
        "checkpoint_every": 7,
        "log_every": 3,
        "stages": [
            {"parent": "teacher"},
            {"parent": "stage-one", "steps": 2},
            {"parent": "stage-one", "steps": 2, "stride": 2, "states": "trajectory"},
        ],
    },
}
MODELS = ("teacher", "stage-one", "student-2", "student-2-stochastic")


def test_ten_kills_change_no_bit(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    script = Path(__file__).parent / "killed.py"
    done = subprocess.run(
        [sys.executable, str(script), str(recipe), str(tmp_path), "10", "0"],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout)
    assert len(kills) == 10
    assert len({k["models"] for k in kills}) >= 3
    for name in MODELS:
        for part in (
            f"{name}/unet/diffusion_pytorch_model.safetensors",
            *_checkpoints(tmp_path, name),
        ):
            a, b = (load_file(tmp_path / side / part) for side in ("whole", "killed"))
            assert a.keys() == b.keys()
            assert all(a[k].equal(b[k]) for k in a), part
    left = [p.name for p in (tmp_path / "killed").rglob(".partial-*")]
    assert left == []


def _checkpoints(folder: Path, name: str) -> list[str]:
    last = json.loads(
        (folder / "whole" / "training" / name / "checkpoints" / "latest.json").read_text()
    )["update"]
    where = f"training/{name}/checkpoints/{last:08d}"
    return [f"{where}/weights.safetensors", f"{where}/ema.safetensors"]
