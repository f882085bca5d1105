"""The loss of a small run of every kind of stage is the stored one: code may move, numbers not.

`python -m tests.recipes.test_loss_curves` writes `loss_curves.json`. A change that alters numbers
on purpose writes it again, and says so in CHANGELOG.md.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from fewstep.recipes.config import check_recipe
from fewstep.recipes.run import Run
from fewstep.train.log import read_metrics

STORED = Path(__file__).with_name("loss_curves.json")
# Kernels of different CPUs differ in the last bits, and 12 updates multiply that a little.
TOLERANCE = 1e-3
CONSISTENCY = "consistency-distillation"
STAGES = [
    {"parent": "teacher"},
    {"parent": "teacher", "name": "second-order", "steps": 4, "order": 2, "substeps": 4},
    {"parent": "stage-one", "name": "on-trajectories", "steps": 4, "states": "trajectory"},
    {"parent": "stage-one", "name": "halved", "steps": 8},
    {"parent": "halved", "name": "halved-again", "steps": 4},
    {"parent": "stage-one", "name": "stochastic", "steps": 4, "stride": 2, "substeps": 4},
    {"parent": "stage-one", "name": "encoder", "steps": 4, "direction": "encode"},
    {"parent": "teacher", "name": "pair", "steps": 4, "pair": True},
    {"parent": "teacher", "kind": CONSISTENCY, "substeps": 8, "order": 2},
    {"parent": "consistency", "kind": CONSISTENCY, "substeps": 8, "target": "self"},
    {"parent": "teacher", "kind": "sample-distillation"},
    {"parent": "teacher", "name": "one", "steps": 1},
    {"parent": "one", "kind": "distribution-matching", "steps": 1, "real": "sampled"},
    {"parent": "teacher", "name": "any", "any_steps": [4, 2], "order": 2, "states": "trajectory"},
    {"parent": "stage-one", "name": "any-noised", "any_steps": [4, 2, 1]},
    {"parent": "teacher", "name": "pooled", "any_steps": [4, 2], "mixture": [2, 4]}
    | {"states": "trajectory", "pool": 5},
]
RECIPE = {
    "name": "curves",
    "data": {"name": "digits"},
    "network": {"channels": [8, 16], "groups": 4, "w_dim": 32},
    "teacher": {"updates": 12, "batch_size": 16, "lr": 3e-3, "log_every": 3},
    "distill": {"updates": 12, "batch_size": 16, "log_every": 3, "stages": STAGES},
}


def curves(folder: Path) -> dict[str, list[float]]:
    run = Run(check_recipe(RECIPE, "recipe.yaml"), folder, "cpu", progress=False)
    run.prepare()
    run.train_teacher()
    for stage in run.plan:
        run.distill(stage)
    names = ["teacher", *(stage.name for stage in run.plan)]
    return {n: [row["loss"] for row in read_metrics(folder / "training" / n)] for n in names}


def test_the_losses_of_every_kind_of_stage_are_the_stored_ones(tmp_path: Path) -> None:
    found, stored = curves(tmp_path / "run"), json.loads(STORED.read_text())
    assert list(found) == list(stored)
    for name, losses in stored.items():
        assert len(losses) == 4
        assert found[name] == pytest.approx(losses, rel=TOLERANCE), name


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        STORED.write_text(json.dumps(curves(Path(folder) / "run"), indent=1) + "\n")
