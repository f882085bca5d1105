"""What a recipe's data are conditioned on, and what is printed of them before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.making import parquet
from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.data import DataConfig
from fewstep.errors import NonFiniteError, RecipeError
from fewstep.recipes import latents
from fewstep.recipes.config import LatentConfig, Recipe, check_recipe
from fewstep.recipes.run import Run


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("settings", "cond"),
    [
        ({}, "class"),
        ({"latents": {}}, "prompt"),
        ({"latents": {"cond": "class"}, "data": {"cond": "prompt"}}, "class"),
        ({"latents": {"cond": "prompt"}, "data": {"name": "x.parquet"}}, "prompt"),
    ],
)
def test_data_are_conditioned_as_latents_are(settings: dict[str, Any], cond: str) -> None:
    data = {"name": "digits", **settings.get("data", {})}
    made = check_recipe({"name": "x", **settings, "data": data}, "test")
    assert made.data.cond == cond
    assert check_recipe(made.model_dump(mode="json"), "test") == made
    typed = Recipe(name="x", data=DataConfig(name="digits"), latents=LatentConfig())
    assert typed.data.cond == "prompt"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"data": {"cond": "prompt"}}, "data.cond=prompt needs"),
        ({"latents": {"cond": "words"}}, "latents.cond"),
        ({"latents": "prompt"}, "latents"),
        ({"latents": {}, "data": 3}, "data"),
    ],
)
def test_wrong_conditions_are_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        check_recipe({"name": "x", **settings}, "test")


def test_what_the_data_are_is_told_once(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", label=[0, 1, None, 1])
    data = {"name": str(path), "size": 4, "held_out": 0.0, "skip_bad": True}
    said: list[str] = []
    run = Run(
        check_recipe({"name": "x", "data": data}, "test"), tmp_path / "run", "cpu", said.append
    )
    assert len(run.data.images) == len(run.data.images) == 3
    assert len(said) == 1
    assert "4 rows seen, 3 used (3 to train on, 0 held out), 2 classes" in said[0]
    assert "left out: 1 (bad images or labels)" in said[0]


def test_an_encoder_that_makes_nan_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(tmp_path / "t.parquet", label=[0, 1, 0, 1])
    made = check_recipe(
        {"name": "x", "data": {"name": str(path), "size": 4}, "latents": {"cond": "class"}}, "test"
    )

    def broken(vae: object, x: Tensor) -> Cond:
        return torch.full_like(x, float("nan"))

    monkeypatch.setattr(latents, "load_vae", lambda *_: None)
    monkeypatch.setattr(latents, "encode_images", broken)
    monkeypatch.setattr(latents, "encoders_sha256", lambda *_, **__: "0")
    assert made.latents is not None
    run = Run(made, tmp_path / "run", "cpu")
    with pytest.raises(NonFiniteError, match="the autoencoder of parts makes values that are NaN"):
        latents.encoded(run.data.images, made.data, made.latents, Path("parts"), progress=False)
