"""Recipes on latents: encoded once, trained, distilled, measured, for prompts and for classes."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from tests.models.pipelines import dit_folder, edit, sd_folder

import fewstep
from fewstep.cli.main import main
from fewstep.cli.show import describe
from fewstep.core.denoiser import Guided
from fewstep.data import Prompts, open_dataset
from fewstep.errors import FewstepError, FolderError, RecipeError
from fewstep.folders import (
    encode_prompts,
    encoders_sha256,
    load,
    load_model,
    load_vae,
    save_model,
)
from fewstep.models import card_of, decode_latents, encode_images, read_card
from fewstep.models.pipeline import ClassConditionalPipeline
from fewstep.recipes.config import Recipe, check_recipe, save_recipe
from fewstep.recipes.latents import encoded
from fewstep.recipes.run import Run
from fewstep.recipes.study import run_study
from fewstep.testing import check_denoiser

NAMES = ("cat", "owl")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("latents")


@pytest.fixture(autouse=True)
def _cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(home / "cache"))


@pytest.fixture(scope="module")
def images(home: Path) -> Path:
    draws = np.random.default_rng(0)
    rows: dict[str, list[Any]] = {"image": [], "label": []}
    for k in range(60):
        pixels = draws.integers(0, 90, (16, 16, 3), dtype=np.uint8)
        pixels[:, :8] += np.uint8(120 * (k % 2))  # classes, and mirror images, differ
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        rows["image"].append({"bytes": out.getvalue(), "path": None})
        rows["label"].append(k % 2)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}
    )
    path = home / "images.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def parts(home: Path) -> Path:
    return sd_folder(home / "parts", prediction_type="v_prediction")


def recipe(images: Path, parts: Path | None, cond: str = "prompt", **more: Any) -> Recipe:
    settings = {
        "name": "small-latents",
        "data": {"name": str(images), "size": 16, "captions": ["a {}", "one {}"]},
        "latents": {"cond": cond, "flip": True, "shard_size": 40},
        "network": {"channels": [8, 16], "groups": 4, "w_dim": 32},
        "teacher": {"updates": 4, "batch_size": 8},
        "distill": {
            "w": [0, 4],
            "updates": 3,
            "batch_size": 8,
            "stages": [
                {"parent": "teacher"},
                {"parent": "stage-one", "steps": 8},
                {"parent": "student-8", "steps": 4},
            ],
        },
        "evaluate": {"w": [1, 3], "samples": 16, "reference_steps": 8, "teacher_steps": [4],
                     "stage_one_steps": [], "batch_size": 16, "solver_steps": [4]},
    }  # fmt: skip
    if parts is not None:
        settings["latents"]["folder"] = str(parts)
    return check_recipe({**settings, **more}, "test")


def encode(made: Recipe, parts: Path, **more: Any) -> Any:
    assert made.latents is not None
    return encoded(open_dataset(made.data), made.data, made.latents, parts, progress=False, **more)


def test_latents_and_captions_are_the_folders_own_and_mirrors_come_after(
    images: Path, parts: Path
) -> None:
    made = recipe(images, parts)
    data, pictures = encode(made, parts), open_dataset(made.data)
    count = len(pictures)
    assert len(data) == 2 * count
    index = torch.tensor([5, 0, count + 5])
    z, cond = data.batch(index)
    x, label = pictures.batch(index % count)
    x = torch.stack([x[0], x[1], x[2].flip(-1)])
    torch.testing.assert_close(z, encode_images(load_vae(parts), x), atol=1e-5, rtol=0)
    assert not torch.allclose(z[0], z[2], atol=1e-2)
    names = [NAMES[k] for k in label.tolist()]
    said = [encode_prompts(parts, [f"{a} {n}", f"one {n}"])
            for n in names for a in ("an" if n == "owl" else "a",)]  # fmt: skip
    for k in range(3):
        nearest = min(float((cond[k] - s).abs().max()) for s in said[k])
        assert nearest < 1e-5
    torch.testing.assert_close(cond[0], cond[2])


def test_a_cache_is_found_by_what_it_holds(images: Path, parts: Path, tmp_path: Path) -> None:
    made = recipe(images, parts)
    said: list[str] = []
    first = encode(made, parts, say=said.append)
    again = encode(made, parts, say=said.append)
    assert first.folder == again.folder
    assert not any("still to be written" in line for line in said[1:])
    other = made.data.model_copy(update={"captions": ("{}",)})
    assert made.latents is not None
    captioned = encoded(open_dataset(other), other, made.latents, parts, progress=False)
    classes = encode(recipe(images, parts, "class"), parts)
    assert len({first.folder, captioned.folder, classes.folder}) == 3
    _, cond = classes.batch(torch.arange(4))
    assert cond.dtype == torch.int64


@pytest.fixture(scope="module")
def text_run(home: Path, images: Path, parts: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_CACHE", str(home / "cache"))
        out = home / "text"
        run_study(recipe(images, parts), out, "cpu", lambda _: None, progress=False)
    return out


def test_a_text_model_goes_from_images_to_a_report(text_run: Path) -> None:
    assert (text_run / "report.html").is_file()
    card = read_card(text_run / "student-4")
    assert (card.family, card.steps, card.w_range) == ("stable-diffusion", 4, (0.0, 4.0))
    assert [p.name for p in card.parents] == ["student-8", "stage-one", "teacher"]
    assert any(k.startswith("fd_") for k in card.figures)
    rows = (text_run / "table.csv").read_text()
    assert "dpm-solver++" in rows
    # What was trained differs from what it started from.
    teacher = load(text_run / "teacher")
    assert card_of(teacher).training["updates"] == 4


def test_the_trained_folder_is_a_stock_pipeline(text_run: Path) -> None:
    student = load(text_run / "student-4")
    folder = text_run / "student-4"
    z = fewstep.sample(student, encode_prompts(folder, ["a cat"]), w=3.0, seed=5)
    ours = decode_latents(load_vae(folder), z)
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    noise = fewstep.core.seed.Noise(5, range(1)).draw((4, 8, 8), torch.float32, torch.device("cpu"))
    stock = pipe(
        "a cat",
        num_inference_steps=4,
        guidance_scale=4.0,
        latents=noise,
        output_type="pt",
    ).images
    torch.testing.assert_close(stock, (ours / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)


def test_a_class_model_goes_from_images_to_a_report(
    home: Path, images: Path, parts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "classes"
    made = recipe(images, parts, "class")
    run_study(made, out, "cpu", lambda _: None, progress=False)
    teacher = load(out / "teacher")
    assert isinstance(teacher, Guided)
    classes = torch.tensor([0, 1, 1])
    assert len(check_denoiser(teacher, classes, null_cond=teacher.null_cond)) == 13
    student = load(out / "student-4")
    assert read_card(out / "student-4").family == "latent-class"
    z = fewstep.sample(student, torch.tensor([1]), w=2.0, seed=5)
    ours = decode_latents(load_vae(out / "student-4"), z)
    pipe = ClassConditionalPipeline.from_pretrained(out / "student-4")
    pipe.set_progress_bar_config(disable=True)
    noise = fewstep.core.seed.Noise(5, range(1)).draw((4, 8, 8), torch.float32, torch.device("cpu"))
    drawn = pipe([1], guidance_scale=3.0, latents=noise, output_type="pt").images
    torch.testing.assert_close(drawn, ours, atol=1e-4, rtol=0)
    (picture,) = pipe([1], guidance_scale=3.0, latents=noise).images
    assert picture.size == (16, 16)


def test_a_stock_folder_is_a_teacher_and_brings_its_encoders(
    images: Path, parts: Path, tmp_path: Path
) -> None:
    settings = recipe(images, None).model_dump(mode="json")
    settings["latents"]["negative_prompt"] = "blurry"
    run = Run(check_recipe(settings, "test"), tmp_path / "run", "cpu", progress=False)
    run.prepare()
    run.use_teacher(parts)
    card = run.distill(next(iter(run.plan)))
    assert card.parents[0].name == "teacher"
    assert card.null_prompt == read_card(tmp_path / "run" / "teacher").null_prompt == "blurry"
    assert read_card(tmp_path / "run" / "teacher").weights_sha256 == card.parents[0].sha256


def test_a_dit_folder_is_told_classes(images: Path, tmp_path: Path) -> None:
    folder = dit_folder(tmp_path / "dit", classes=2)
    stages = {"w": [2, 2], "updates": 2, "batch_size": 8,
              "stages": [{"parent": "teacher", "steps": 4}]}  # fmt: skip
    made = recipe(images, None, "class", distill=stages,
                  evaluate={"w": [2], "samples": 8, "reference_steps": 8,
                            "teacher_steps": [], "batch_size": 8})  # fmt: skip
    out = tmp_path / "run"
    run_study(made, out, "cpu", lambda _: None, False, [folder])
    assert read_card(out / "student-4").figures


@pytest.mark.parametrize(
    ("cond", "folder", "says"),
    [
        ("prompt", None, "nothing says what encodes them: give --teacher"),
        ("prompt", "parts/vae", "has no text encoder"),
        ("class", "", "vae is missing"),
    ],
)
def test_parts_that_do_not_encode_are_said(
    cond: str, folder: str | None, says: str, images: Path, parts: Path, tmp_path: Path
) -> None:
    given = None if folder is None else parts.parent / folder
    run = Run(recipe(images, given, cond), tmp_path / "run", "cpu", progress=False)
    with pytest.raises(FewstepError, match=says):
        run.train_teacher()


def test_a_teacher_that_draws_by_something_else_is_said(
    images: Path, parts: Path, tmp_path: Path
) -> None:
    run = Run(recipe(images, None, "class"), tmp_path / "run", "cpu", progress=False)
    with pytest.raises(RecipeError, match=r"draws by prompts; set latents\.cond=prompt"):
        run.use_teacher(parts)
    pixels = check_recipe({"name": "pixels", "data": {"name": str(images)}}, "test")
    with pytest.raises(RecipeError, match="works on latents and pixels has images"):
        Run(pixels, tmp_path / "pixels", "cpu", progress=False).use_teacher(parts)


def test_cache_prints_where_the_latents_are_and_makes_them_once(
    images: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    save_recipe(recipe(images, None), path)
    command = ["cache", str(path), "--teacher", str(parts), "--set", "latents.shard_size=16"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "examples" in err
    assert "still to be written" in err
    files = sorted(Path(out.strip()).iterdir())
    before = [f.stat().st_mtime_ns for f in files]
    assert main(command) == 0
    assert capsys.readouterr().out == out
    assert [f.stat().st_mtime_ns for f in files] == before
    (shard := files[-1]).write_bytes(shard.read_bytes()[:-1] + b"!")
    assert main(command) == 1
    assert f"{shard} is damaged" in capsys.readouterr().err
    assert main(["cache", "digits"]) == 1
    assert "digits works on images" in capsys.readouterr().err


def test_evaluate_asks_by_captions_and_knows_the_images(
    text_run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cells"
    command = ["evaluate", str(text_run / "student-4"), "--reference", str(images), "--w", "1"]
    command += ["--features", str(text_run / "evaluation" / "features")]
    assert main([*command, "--samples", "8", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "other images" not in said.err
    (row,) = json.loads((out / "evaluation.json").read_text())
    assert (row["model"], row["evaluations"]) == ("student-4", 4)


def test_prompts_alone_make_students_at_the_teachers_own_states(
    parts: Path, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\na dog\na fox\n")
    settings = recipe(path, None).model_dump(mode="json")
    settings["latents"]["flip"] = False
    noised = Run(check_recipe(settings, "test"), tmp_path / "noised", "cpu", progress=False)
    noised.prepare()
    noised.use_teacher(parts)
    with pytest.raises(RecipeError, match=r"prompts alone.*set distill\.states=trajectory"):
        noised.distill(next(iter(noised.plan)))
    settings["distill"]["states"] = "trajectory"
    run = Run(check_recipe(settings, "test"), tmp_path / "run", "cpu", progress=False)
    run.prepare()
    run.use_teacher(parts)
    cards = [run.distill(stage) for stage in run.plan]
    assert [c.steps for c in cards] == [None, 8, 4]
    cond = encode_prompts(tmp_path / "run" / "student-4", ["a dog"])
    z = fewstep.sample(load(tmp_path / "run" / "student-4"), cond, w=2.0)
    assert z.shape == (1, 4, 8, 8)
    with pytest.raises(RecipeError, match="figures compare with images"):
        run_study(check_recipe(settings, "test"), tmp_path / "run", "cpu", lambda _: None)


def test_stages_that_draw_their_own_samples_need_prompts_alone(parts: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\na dog\n")
    settings = recipe(path, None).model_dump(mode="json")
    settings["latents"]["flip"] = False
    settings["distill"] |= {"updates": 1, "stages": [
        {"parent": "teacher", "kind": "sample-distillation"},
        {"parent": "teacher", "steps": 1, "states": "trajectory"},
        {"parent": "student-1", "kind": "distribution-matching", "steps": 1, "real": "sampled"},
    ]}  # fmt: skip
    run = Run(check_recipe(settings, "test"), tmp_path / "run", "cpu", progress=False)
    with run.writing(teachers=[parts]):
        run.use_teacher(parts)
        cards = {stage.name: run.distill(stage) for stage in run.plan}
    matched, real = cards["matched-1"], cards["sampled"]
    assert [p.name for p in matched.parents] == ["student-1", "teacher"]
    assert matched.teacher is not None
    assert (matched.teacher.name, matched.teacher.sha256) == ("sampled", real.weights_sha256)
    assert cards["student-1"].teacher is None
    assert f"teacher      sampled ({real.weights_sha256[:8]})" in describe(matched)
    text = (run.folder("matched-1") / "README.md").read_text()
    assert f"| teacher: sampled (sha256) | {real.weights_sha256} |" in text
    edit(run.folder("sampled") / "fewstep.json", weights_sha256="0" * 64)
    with pytest.raises(FolderError, match="it was made from another sampled"):
        run.distill(run.plan.stages[-1])


def test_prompts_alone_are_encoded_without_images(parts: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\na dog\na cat\n")
    made = recipe(path, None)
    assert made.latents is not None
    latents = made.latents.model_copy(update={"flip": False})
    data = encoded(Prompts(path), made.data, latents, parts, progress=False)
    x, cond = data.batch(torch.tensor([2, 1]))
    assert x.shape == (2, 0)
    torch.testing.assert_close(cond, encode_prompts(parts, ["a cat", "a dog"]))


def test_a_saved_teacher_finds_the_cache_of_the_parts_it_came_from(
    parts: Path, tmp_path: Path
) -> None:
    """Settings of a part may name the folder that it was loaded from, which no copy does."""
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(parts, first)
    config = first / "vae" / "config.json"
    config_of_vae = json.loads(config.read_text())
    config.write_text(json.dumps({**config_of_vae, "_name_or_path": str(parts / "vae")}))
    save_model(load_model(first), second)
    assert "_name_or_path" not in json.loads((second / "vae" / "config.json").read_text())
    assert encoders_sha256(first) == encoders_sha256(second)
    config.write_text(json.dumps({**config_of_vae, "scaling_factor": 0.25}))
    assert encoders_sha256(first) != encoders_sha256(second)
