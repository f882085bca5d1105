"""Everything that can be checked before the first update is, by a run and by --plan alike."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tests.models.pipelines import dit_folder, sd_folder

from fewstep.cli.main import main
from fewstep.errors import FewstepError, RangeError
from fewstep.recipes.config import Recipe, check_recipe
from fewstep.recipes.preflight import check_trainings
from fewstep.recipes.run import Run
from fewstep.resident import resident_now
from fewstep.train.room import memory_limit

CONSISTENCY = "consistency-distillation"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("preflight")


@pytest.fixture(autouse=True)
def _cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(home / "cache"))


@pytest.fixture(scope="module")
def images(home: Path) -> Path:
    for k in range(8):
        path = home / "pets" / ("cat", "dog")[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (20 * k, 0, 0)).save(path)
    return home / "pets"


@pytest.fixture(scope="module")
def sd(home: Path) -> Path:
    return sd_folder(home / "sd")


def data_of(images: object, stages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    distill = {"batch_size": 4, "updates": 2, "w": [0, 4], "stages": stages}
    return {
        "name": "tiny",
        "data": {"name": str(images), "size": 16, "held_out": 0.0, **more.pop("data", {})},
        "network": {"channels": [8], "groups": 4, "w_dim": 16, **more.pop("network", {})},
        "teacher": {"updates": 2, "batch_size": 4, **more.pop("teacher", {})},
        "distill": {**distill, **more.pop("distill", {})},
        "evaluate": {"w": [1]},
        **more,
    }


def run(out: Path, data: dict[str, Any]) -> Run:
    recipe: Recipe = check_recipe(data, "r.yaml")
    return Run(recipe, out, "cpu", progress=False)


LATENTS = {"latents": {"cond": "prompt"}}


@pytest.mark.parametrize(
    ("stages", "more", "says"),
    [
        ([{"parent": "teacher"}, {"parent": "stage-one", "steps": 7}], {}, "'student-7'.*7"),
        ([{"parent": "teacher", "steps": 4}], {"data": {"size": 8}}, r"8x8 pixels.*data\.size=16"),
        ([{"parent": "teacher", "steps": 4}], {"latents": {"cond": "class"}}, "cond=prompt"),
        ([{"parent": "stage-one", "steps": 4}], {}, "stage-one is not made yet"),
        ([{"parent": "teacher", "steps": 4}], {"distill": {"accumulate": 3}}, "distill: .*3 parts"),
        ([{"parent": "teacher", "steps": 4}], {"distill": {"precision": "bf16"}}, "bf16 on a CPU"),
        ([{"parent": "teacher", "steps": 4}], {"distill": {"shard": True}}, "there is one process"),
        ([{"parent": "teacher", "steps": 4}], {"network": {"channels": [9]}}, None),
    ],
)
def test_a_plan_that_does_not_fit_a_stock_teacher_is_refused_at_once(
    images: Path, sd: Path, tmp_path: Path, stages: Any, more: Any, says: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if says is None:
        more = {}  # the network of the recipe is not used: nothing is wrong
    data = data_of(images, stages, **{**LATENTS, **more})
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(data))
    command = ["distill", str(path), "--teacher", str(sd), "--out", str(tmp_path / "run")]
    command += ["--device", "cpu"]
    code = main([*command, "--plan"])
    planned = capsys.readouterr()
    assert not (tmp_path / "run").exists()
    if says is None:
        assert code == 0
        assert "student-4" in planned.out
        return
    assert code == 1
    assert planned.out == ""
    assert main(command) == 1
    assert capsys.readouterr().err.splitlines()[-1] == planned.err.splitlines()[-1]
    assert not [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    with pytest.raises(FewstepError, match=says):
        run(tmp_path / "run", data).check(["stage-one", "student-7", "student-4"], [sd])


def test_a_plan_needs_neither_teacher_nor_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", "cifar10", "--plan", "--out", str(tmp_path / "r")]) in (0, 1)
    capsys.readouterr()
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(data_of("nowhere/x", [{"parent": "teacher", "steps": 4}])))
    assert main(["distill", str(path), "--plan", "--out", str(tmp_path / "r")]) == 0
    said = capsys.readouterr()
    assert "student-4" in said.out
    assert "not checked: the data, since nowhere/x is not there" in said.err
    assert main(["distill", str(path), "--out", str(tmp_path / "r")]) == 1
    assert "fewstep train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("classes", "names", "says"),
    [
        (1, None, "at most the 1 classes"),
        (2, ("dog", "cat"), "class 0 is 'cat' in the data and 'dog' in"),
        (3, ("cat", "owl", "dog"), "class 1 is 'dog' in the data and 'owl'"),
        (3, ("cat", "dog", "owl"), None),
    ],
)
def test_classes_of_the_data_are_those_of_the_teacher(
    images: Path, tmp_path: Path, classes: int, names: Any, says: str | None
) -> None:
    folder = dit_folder(tmp_path / "dit", classes=classes)
    if names is not None:
        import json

        index = folder / "model_index.json"
        told_index = json.loads(index.read_text())
        told_index["id2label"] = {str(k): n for k, n in enumerate(names)}
        index.write_text(json.dumps(told_index))
    data = data_of(images, [{"parent": "teacher", "steps": 4}], latents={"cond": "class"})
    data["distill"]["w"] = [1, 1]
    made = run(tmp_path / "run", data)
    if says is None:
        made.check(["student-4"], [folder])
    else:
        with pytest.raises(FewstepError, match=says):
            made.check(["student-4"], [folder])


def test_a_network_that_cannot_take_the_images_is_refused(images: Path, tmp_path: Path) -> None:
    data = data_of(images, [], network={"channels": [8] * 6})
    with pytest.raises(FewstepError, match=r"network\.channels"):
        run(tmp_path / "run", data).check(["teacher"])


def test_a_network_that_does_not_fit_into_memory_is_refused(images: Path, tmp_path: Path) -> None:
    data = data_of(images, [], network={"channels": [16384, 16384]})
    with pytest.raises(FewstepError, match=r"teacher must fit into .* needs about .* TB"):
        run(tmp_path / "run", data).check(["teacher"])


def test_a_batch_that_does_not_fit_into_memory_is_refused_before_training(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewstep.recipes.memory.memory_limit", lambda _: 3_000_000)
    data = data_of(images, [], teacher={"batch_size": 4096})
    with pytest.raises(FewstepError, match=r"batch_size 4096, accumulate 1.*Raise accumulate"):
        run(tmp_path / "run", data).train_teacher()
    assert not (tmp_path / "run" / "training").exists()


def test_the_limit_is_that_of_the_process_where_it_is_the_least() -> None:
    assert memory_limit(torch.device("cpu")) > 1 << 28
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 45, hard))
        assert memory_limit(torch.device("cpu")) < 1 << 44  # of the machine, and not this limit
        resource.setrlimit(resource.RLIMIT_AS, (_reserved() + (1 << 20), hard))
        assert memory_limit(torch.device("cpu")) <= resident_now() + (1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _reserved() -> int:
    """The address space of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def test_a_small_range_of_a_stage_one_is_noticed(home: Path, tmp_path: Path) -> None:
    stages = [{"parent": "teacher", "updates": 1}]
    data = {**data_of("digits", stages), "data": {"name": "digits"}}
    first = run(tmp_path / "first", data)
    with first.writing():
        first.train_teacher()
        first.distill(first.plan.stages[0])
    wide = {**data, "distill": {**data["distill"], "w": [0, 8]}}
    wide["distill"]["stages"] = [{"parent": "stage-one", "steps": 4}]
    with pytest.raises(FewstepError, match=r"\[0, 4\]"):
        run(tmp_path / "second", wide).check(["student-4"], [tmp_path / "first" / "stage-one"])


@pytest.mark.parametrize(
    ("stage", "data", "message"),
    [
        ({"any_steps": [2, 1]}, {"buckets": [[16, 16], [16, 8]]}, "images have several sizes"),
        ({"kind": CONSISTENCY, "target": "self", "substeps": 4}, {}, "the student's average"),
        ({"any_steps": [2, 1], "states": "noised"}, {}, "pool needs states: trajectory"),
    ],
)
def test_a_pool_that_cannot_be_is_refused_before_the_first_update(
    images: Path, stage: dict[str, Any], data: dict[str, Any], message: str
) -> None:
    stages = [{"parent": "teacher", "states": "trajectory", "pool": 2, **stage}]
    found = data_of(images, stages)
    found["data"] = {**found["data"], **data}
    recipe = check_recipe(found, "recipe.yaml")
    with pytest.raises(RangeError, match=message):
        check_trainings(recipe, [s.name for s in recipe.distill.plan()], "cpu")
