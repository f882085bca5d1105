"""Every built-in recipe, made small, goes from its data to a report."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tests.models.pipelines import dit_folder, sd3_folder, sd_folder

from fewstep.data import Digits
from fewstep.distill.plan import STAGE_ONE, TEACHER
from fewstep.measure import own_features
from fewstep.metrics import DigitsFeatures, digits_features
from fewstep.recipes.config import built_in_recipes, check_recipe, load_recipe
from fewstep.recipes.study import run_study

PIXELS = {"channels": [8], "groups": 4, "layers": 1, "time_dim": 16, "w_dim": 16,
          "attention": [False], "head_dim": 4, "dropout": 0.0}  # fmt: skip
PLAIN = {"precision": "fp32", "compile": False, "warmup": 0, "shard": False, "batch_size": 4,
         "accumulate": 1, "checkpoint_activations": False, "updates": 1}  # fmt: skip
# What a recipe starts from; the others train their own teacher from nothing.
FROM = {
    "comparisons": "digits",
    "digits-encoders": "digits",
    "cifar10-small-encoders": "cifar10-small",
    "latent-small-encoders": "latent-small",
    "strong-guidance": "latent-small",
}
# Stock folders whose network a recipe trains from the start.
FRESH = {"latent-small": "sd", "latent-small-classes": "sd", "flow-small": "sd3"}


def png(seed: int, size: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and model folders in which every recipe finds what it names."""
    path = tmp_path_factory.mktemp("recipes")
    rows = [{"bytes": png(k, 16), "path": None} for k in range(60)]
    table = pa.table({"image": rows, "label": [k % 3 for k in range(60)]})
    pq.write_table(table, path / "images.parquet", row_group_size=20)
    for k in range(20):
        folder = path / "imagenet" / f"class {k % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k}.png").write_bytes(png(k, 16))
    (path / "pictures").mkdir()
    letters = "abcdefghijklmnopqrst"
    lines = []
    for k, letter in enumerate(letters):  # every caption its own
        (path / "pictures" / f"{k}.png").write_bytes(png(k, 16))
        lines.append(json.dumps({"file_name": f"{k}.png", "text": f"a thing {letter}"}))
    (path / "pictures" / "metadata.jsonl").write_text("\n".join(lines))
    sd_folder(path / "sd", prediction_type="v_prediction")
    sd3_folder(path / "sd3", t5=False)
    dit_folder(path / "dit", classes=2)
    return path


def digits(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    data = Digits(split)
    return data.batch(torch.arange(len(data)))


def small(name: str, home: Path) -> dict[str, Any]:
    """Return a built-in recipe with a tiny network, one update per stage and few samples."""
    settings: dict[str, Any] = load_recipe(name).model_dump(mode="json")
    settings["network"] |= PIXELS
    settings["teacher"] |= PLAIN
    settings["distill"] |= PLAIN
    if settings["distill"]["states"] == "trajectory":
        settings["distill"]["batch_size"] = 8  # holds a trajectory of 8 steps
    settings["distill"]["stages"] = _few(settings["distill"]["stages"])
    evaluate = settings["evaluate"]
    evaluate |= {"samples": 8, "batch_size": 8, "reference_steps": 4, "teacher_steps": [2]}
    evaluate["w"] = [min(evaluate["w"], key=lambda w: abs(w - 1))]
    for key in ("stage_one_steps", "solver_steps"):
        evaluate[key] = [2] if evaluate[key] else []
    data, latents = settings["data"], settings["latents"]
    if data["name"] != "digits":
        places = {"imagenet256": "imagenet", "stable-diffusion": "pictures"}
        data |= {"name": str(home / places.get(name, "images.parquet")), "size": 16}
    if latents is not None:
        latents["dtype"] = "float32"
        latents["folder"] = str(home / FRESH[name]) if name in FRESH else None
    return settings


def _few(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep one stage of each kind, of at most 16 steps; its children get a parent that is left.

    More steps only take longer, and the next of a chain is made as the first is.
    """
    kept: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of each stage -> that of what stands in for it
    kinds: set[tuple[Any, ...]] = set()
    for stage in stages:
        stage["updates"] = 1
        name = stage["name"]
        kind = (stage["steps"] is None, *(stage[k] for k in ("stride", "direction", "pair")))
        parent = names.get(stage["parent"], stage["parent"])
        if (stage["steps"] or 0) > 16 or kind in kinds:
            names[name] = parent
            continue
        kinds.add(kind)
        names[name] = name
        kept.append({**stage, "parent": parent})
    return kept


@pytest.fixture(scope="module")
def report(home: Path) -> Any:
    """Return a function: the folder of a recipe's finished report, each made once."""

    @cache
    def trained() -> DigitsFeatures:
        return digits_features(home / "features", digits("train"), digits("held-out"))

    def features_of_digits(*_: object) -> DigitsFeatures:
        return trained()  # 3 s for the same weights in every recipe of the digits

    @cache
    def made(name: str) -> Path:
        given = {"imagenet256": [home / "dit"], "stable-diffusion": [home / "sd"]}.get(name, [])
        if name in FROM:
            given = [made(FROM[name]) / part for part in (TEACHER, STAGE_ONE)]
        recipe = check_recipe(small(name, home), name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FEWSTEP_CACHE", str(home / "cache"))
            patch.setattr(own_features, "digits_features", features_of_digits)
            page = run_study(recipe, home / name, "cpu", lambda _: None, False, given)
        return page.parent

    return made


@pytest.mark.parametrize("name", built_in_recipes())
def test_a_recipe_goes_from_data_to_a_report(name: str, report: Any) -> None:
    folder = report(name)
    page = (folder / "report.html").read_text()
    data = json.loads((folder / "report.json").read_text())
    stages = load_recipe(name).distill.stages
    drawn = any(s.direction == "decode" and s.steps for s in stages)
    assert (data["knob"] is not None) == drawn
    assert ("no deterministic few-step student" in page) != drawn
    fd = next(k for k in data["rows"][0] if k.startswith("fd_"))
    for row in data["rows"]:
        if row["model"] != "held-out":
            assert row[fd] is not None
            assert row["rms_to_teacher"] is not None
            assert row["fd_to_teacher"] is not None
        for key, value in row.items():
            explained = any(key in line.partition("(")[0] for line in data["missing"])
            assert value is not None or row["model"] == "held-out" or explained, (row, key)
    assert data["warnings"]  # eight samples are few
    assert str(folder.parent) not in page
