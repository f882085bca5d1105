"""SIGKILL at random moments of teacher, stage one and stage two: the same bits every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file
from tests.forks import Forks

from fewstep.train import read_metrics

RECIPE = {
    "name": "killed",
    "data": {"name": "digits"},
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
            {"parent": "stage-one", "any_steps": [2, 1], "mixture": [2, 2]}
            | {"states": "trajectory", "pool": 8},
            {"name": "self", "parent": "stage-one", "kind": "consistency-distillation"}
            | {"target": "self", "substeps": 4},
        ],
    },
}
MODELS = ("teacher", "stage-one", "student-2", "student-2-stochastic", "student-any", "self")


def test_ten_kills_change_no_bit(forks: Forks, tmp_path: Path) -> None:
    kills = killed(forks, tmp_path, RECIPE, 10)
    assert len(kills) == 10
    assert len({k["models"] for k in kills}) >= 3
    assert len({k["at"] for k in kills}) >= 3
    same(tmp_path, MODELS)


def test_kills_change_no_bit_of_a_lora(forks: Forks, tmp_path: Path) -> None:
    network = {**RECIPE["network"], "attention": [False, True]}  # type: ignore[dict-item]
    distill = {
        **RECIPE["distill"],  # type: ignore[dict-item]
        "updates": 30,
        "lora": {"rank": 2, "targets": ["to_q", "to_v", "conv1"]},
        "stages": [{"parent": "teacher"}, {"parent": "stage-one", "steps": 2}],
    }
    teacher = {"updates": 3, "batch_size": 8}
    recipe = {**RECIPE, "network": network, "teacher": teacher, "distill": distill}
    kills = killed(forks, tmp_path, recipe, 4)
    assert len(kills) == 4
    same(tmp_path, MODELS[:3])
    kept = load_file(tmp_path / "killed" / _checkpoints(tmp_path, "stage-one")[0])
    assert all(".lora_" in name or "cond_proj" in name for name in kept)


def test_kills_change_no_bit_of_a_student_that_learns_from_its_average(
    forks: Forks, tmp_path: Path
) -> None:
    stages = [
        {"parent": "teacher", "target": "end", "order": 2},
        {"parent": "consistency", "target": "self"},
    ]
    kind = {"kind": "consistency-distillation", "substeps": 4}
    distill = {**RECIPE["distill"], "updates": 30, "stages": [{**kind, **s} for s in stages]}  # type: ignore[dict-item]
    teacher = {"updates": 3, "batch_size": 8}
    kills = killed(forks, tmp_path, {**RECIPE, "teacher": teacher, "distill": distill}, 4)
    assert len(kills) == 4
    same(tmp_path, ("teacher", "consistency", "self-consistency"))


def test_kills_change_no_bit_of_two_networks(forks: Forks, tmp_path: Path) -> None:
    stages = [
        {"parent": "teacher", "kind": "sample-distillation", "updates": 10},
        {"parent": "teacher", "steps": 1, "updates": 3},
        {"parent": "student-1", "kind": "distribution-matching", "steps": 1, "real": "sampled"},
    ]
    distill = {**RECIPE["distill"], "updates": 24, "stages": stages}  # type: ignore[dict-item]
    recipe = {**RECIPE, "teacher": {"updates": 3, "batch_size": 8}, "distill": distill}
    assert len(killed(forks, tmp_path, recipe, 4)) == 4
    same(tmp_path, ("sampled", "student-1", "matched-1"))
    checkpoint = load_file(tmp_path / "killed" / _checkpoints(tmp_path, "matched-1")[0])
    student, matched = (
        load_file(tmp_path / "killed" / name / "unet/diffusion_pytorch_model.safetensors")
        for name in ("student-1", "matched-1")
    )
    assert student.keys() == matched.keys()  # the folder holds the student alone
    assert len(checkpoint) == 2 * len(student)


def killed(
    forks: Forks, folder: Path, recipe: dict[str, object], kills: int
) -> list[dict[str, Any]]:
    """Make a study undisturbed, and once more with so many kills; return the state after each."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    script = Path(__file__).parent / "killed.py"
    done = forks.run(script, path, folder, kills, 0)
    assert done.returncode == 0, done.stderr
    log: list[dict[str, Any]] = json.loads(done.stdout)
    return log


def same(tmp_path: Path, models: tuple[str, ...]) -> None:
    for name in models:
        for part in (
            f"{name}/unet/diffusion_pytorch_model.safetensors",
            *_checkpoints(tmp_path, name),
        ):
            a, b = (load_file(tmp_path / side / part) for side in ("whole", "killed"))
            assert a.keys() == b.keys()
            assert all(a[k].equal(b[k]) for k in a), part
        rows = [read_metrics(tmp_path / side / "training" / name) for side in ("whole", "killed")]
        for row in (*rows[0], *rows[1]):
            row.pop("updates_per_second")
        assert rows[0] == rows[1]
    left = [p.name for p in (tmp_path / "killed").rglob(".partial-*")]
    assert left == []


def _checkpoints(folder: Path, name: str) -> list[str]:
    last = json.loads(
        (folder / "whole" / "training" / name / "checkpoints" / "latest.json").read_text()
    )["update"]
    where = f"training/{name}/checkpoints/{last:08d}"
    return [f"{where}/weights.safetensors", f"{where}/ema.safetensors"]
