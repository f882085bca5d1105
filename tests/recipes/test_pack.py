"""A run is packed into few small files, and goes on where they are unpacked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.cli.inside import fewstep

from fewstep import time_limit
from fewstep.atomic import sha256
from fewstep.errors import FewstepWarning, FolderError, RangeError, TimeUp
from fewstep.recipes.config import check_recipe
from fewstep.recipes.pack import pack_run
from fewstep.recipes.run import Run
from fewstep.recipes.unpack import unpack_run
from fewstep.train.checkpoint import newest_checkpoint

RECIPE: dict[str, Any] = {
    "name": "packed",
    "data": {"name": "digits"},
    "network": {"channels": [8, 16], "groups": 4, "w_dim": 32},
    "teacher": {"updates": 2, "batch_size": 8},
    "distill": {
        "batch_size": 8,
        "updates": 4,
        "stages": [{"parent": "teacher"}, {"parent": "stage-one", "steps": 2}],
    },
}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def go(folder: Path, stop: bool = False) -> Run:
    """Train a run to its end, or until the second update of its last student."""
    run = Run(check_recipe(RECIPE, "recipe.yaml"), folder, "cpu", progress=False)
    with run.writing():
        run.train_teacher()
        run.distill(run.plan.stages[0])
        for _ in range(2 * stop):
            with time_limit(1e-9), pytest.raises(TimeUp):
                run.distill(run.plan.stages[1])
        if not stop:
            run.distill(run.plan.stages[1])
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return go(tmp_path_factory.mktemp("whole") / "run").out


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return go(tmp_path_factory.mktemp("begun") / "run", stop=True).out


def same(a: Path, b: Path) -> bool:
    one, two = (load_file(run / "student-2" / WEIGHTS) for run in (a, b))
    assert one.keys() == two.keys()
    return all(one[k].equal(two[k]) for k in one)


def test_an_unpacked_run_ends_like_one_that_was_never_packed(
    whole: Path, begun: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    limits = ("--file-size", 0.1, "--files", 30)
    done = fewstep("pack", begun, "--out", "packed", *limits, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "student-2 (begun, 2 updates), with the optimiser's state" in done.stderr
    files = sorted(p.name for p in (tmp_path / "packed").iterdir())
    assert files == sorted(["manifest.json", *(f"part-{k}" for k in range(len(files) - 1))])
    assert 3 < len(files) <= 30
    assert all(p.stat().st_size <= 0.1 * 2**20 for p in (tmp_path / "packed").iterdir())
    done = fewstep("unpack", "packed", "--out", "again", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = go(tmp_path / "again")
    assert same(whole, run.out)
    assert not [w for w in recwarn if issubclass(w.category, FewstepWarning)]
    losses = [(r / "training/student-2/metrics.jsonl").read_text() for r in (whole, run.out)]
    assert [json.loads(t)["loss"] for t in losses[0].splitlines()] == [
        json.loads(t)["loss"] for t in losses[1].splitlines()
    ]


def test_without_the_optimiser_a_run_goes_on_and_says_so(
    whole: Path, begun: Path, tmp_path: Path
) -> None:
    manifest = pack_run(begun, tmp_path / "packed", optimizer=False)
    assert not any("optimizer" in f["name"] for f in manifest["files"])
    unpack_run(tmp_path / "packed", tmp_path / "run")
    for name in ("teacher", "stage-one"):
        assert sha256(tmp_path / "run" / name / WEIGHTS) == sha256(begun / name / WEIGHTS)
    with pytest.warns(FewstepWarning, match="at update 2 from a packed run .without the optimiser"):
        run = go(tmp_path / "run")
    assert not same(whole, run.out)
    assert run.workspace.card("student-2").training["updates"] == 4


@pytest.mark.parametrize("bf16", [False, True])
def test_a_run_without_the_optimisers_state_is_packed_again(
    begun: Path, tmp_path: Path, bf16: bool
) -> None:
    pack_run(begun, tmp_path / "packed", optimizer=False)
    unpack_run(tmp_path / "packed", tmp_path / "run")
    folder = Path("training/student-2/checkpoints")
    (tmp_path / "run" / folder / "latest.json").write_text("[1")
    manifest = pack_run(tmp_path / "run", tmp_path / "again", bf16=bf16)
    assert manifest["optimizer"] is False
    unpack_run(tmp_path / "again", tmp_path / "second")
    assert not (tmp_path / "second" / folder / "latest.json").exists()
    assert newest_checkpoint(tmp_path / "second" / folder) is not None
    state = json.loads((tmp_path / "second" / folder / "00000002" / "state.json").read_text())
    assert state["lost"] == ["without the optimiser's state", *["rounded to bf16"] * bf16]


def test_rounded_weights_are_half_as_large_and_their_hashes_hold(
    begun: Path, tmp_path: Path
) -> None:
    full = pack_run(begun, tmp_path / "full")
    half = pack_run(begun, tmp_path / "half", bf16=True)
    sizes = [sum(p["size"] for p in manifest["parts"]) for manifest in (full, half)]
    assert 0.45 < sizes[1] / sizes[0] < 0.75
    done = fewstep("unpack", "half", "--out", "run", cwd=tmp_path)
    assert "end with others than without packing" in done.stderr
    for name in ("teacher", "stage-one"):
        card = json.loads((tmp_path / "run" / name / "fewstep.json").read_text())
        assert card["weights_sha256"] == sha256(tmp_path / "run" / name / WEIGHTS)
        assert card["training"]["weights"] == "rounded to bf16"
        before, after = (load_file(r / name / WEIGHTS) for r in (begun, tmp_path / "run"))
        assert all(after[k].equal(v.bfloat16().float()) for k, v in before.items())
    run = Run(check_recipe(RECIPE, "recipe.yaml"), tmp_path / "run", "cpu")
    config = run.recipe.train_config(run.plan.stages[1])
    longer = config.model_copy(update={"updates": config.updates + 1})
    student = run.workspace.card("stage-one").model_copy(update={"name": "student-2"})
    assert run.workspace.shorter_training(student, longer, "any data") == config.updates
    other = longer.model_copy(update={"lr": 2 * config.lr})
    assert run.workspace.shorter_training(student, other, "any data") is None
    with pytest.warns(FewstepWarning, match=r"from a packed run \(rounded to bf16\)"):
        run = go(tmp_path / "run")
    parents = run.workspace.card("student-2").parents
    assert parents[0].sha256 == sha256(run.out / "stage-one" / WEIGHTS)
    assert go(run.out).workspace.is_made("student-2")


def test_the_optimiser_is_left_out_where_it_does_not_fit(begun: Path, tmp_path: Path) -> None:
    most = sum(p["size"] for p in pack_run(begun, tmp_path / "all")["parts"])
    size = 0.95 * most / 2**20
    manifest = pack_run(begun, tmp_path / "packed", file_size=size, files=2)
    assert manifest["optimizer"] is False
    done = fewstep(
        "pack", begun, "--out", "none", "--optimizer", "--file-size", size, "--files", 2,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"must fit into 1 files of {size:g} MiB" in done.stderr
    assert "optimiser 0." in done.stderr
    assert "--no-optimizer, --bf16" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all", "packed"]


def test_what_cannot_be_packed_is_refused(begun: Path, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="must be the folder of a run"):
        pack_run(tmp_path, tmp_path / "packed")
    with pytest.raises(RangeError, match="at least 2 of them"):
        pack_run(begun, tmp_path / "packed", files=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(FolderError, match=r"notes\.txt"):
        pack_run(begun, tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    shutil.copy(begun / "recipe.yaml", tmp_path / "empty")
    with pytest.raises(FolderError, match="nothing was trained in it yet"):
        pack_run(tmp_path / "empty", tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_what_is_damaged_is_not_unpacked(begun: Path, tmp_path: Path) -> None:
    packed, run = tmp_path / "packed", tmp_path / "run"
    pack_run(begun, packed)
    with pytest.raises(FolderError, match="never unpacked over another one"):
        unpack_run(packed, begun)
    manifest, part = (packed / name for name in ("manifest.json", "part-0"))
    text, data = manifest.read_text(), part.read_bytes()
    for damaged in (data[:-1], data[:-1] + bytes([data[-1] ^ 1])):
        part.write_bytes(damaged)
        with pytest.raises(FolderError, match="part-0 must be as `fewstep pack` wrote it"):
            unpack_run(packed, run)
    part.write_bytes(data)
    for name in ("../outside", "/tmp/outside", "a/../../outside", "recipe.yaml/"):
        manifest.write_text(text.replace('"recipe.yaml"', json.dumps(name)))
        with pytest.raises(FolderError, match=r"manifest\.json cannot be read"):
            unpack_run(packed, run)
    for broken in ("", "[]", "{}", text.replace("packed run 1", "packed run 9"), text[:-9]):
        manifest.write_text(broken)
        with pytest.raises(FolderError, match="must be a folder that `fewstep pack` wrote"):
            unpack_run(packed, run)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["packed"]


def test_a_packed_run_is_only_tensors_and_text(begun: Path, tmp_path: Path) -> None:
    manifest = pack_run(begun, tmp_path / "packed")
    suffixes = {Path(f["name"]).suffix for f in manifest["files"]}
    assert suffixes <= {".json", ".jsonl", ".yaml", ".safetensors", ".pt", ".md"}
    state = begun / "training/student-2/checkpoints/00000002/optimizer.pt"
    assert torch.load(state, weights_only=True)["readings"]["count"] == 2
