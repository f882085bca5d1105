"""Families of text-to-image models from the command line: prompts alone, captions, sizes."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
import yaml
from PIL import Image
from tests.models.packed import flux_folder
from tests.models.pipelines import sana_folder, sd3_folder, xl_folder

import fewstep
from fewstep.cli.main import main
from fewstep.core.cond import repeat_null
from fewstep.data import Buckets, DataConfig, Dataset, open_dataset
from fewstep.errors import RangeError, RecipeError
from fewstep.folders import encode_prompts, load
from fewstep.measure import evaluate
from fewstep.models import model_of
from fewstep.recipes import buckets, check
from fewstep.recipes import run as runs
from fewstep.recipes.config import check_recipe, load_recipe
from fewstep.recipes.run import Run

# The maker of a folder, and the side of its images in pixels.
MADE: dict[str, tuple[Callable[[Path], Path], int]] = {
    "sd3": (sd3_folder, 16),
    "sd3 without t5": (lambda path: sd3_folder(path, t5=False), 16),
    "sana": (sana_folder, 32),
    "flux": (flux_folder, 16),
    "xl": (xl_folder, 16),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@pytest.fixture(autouse=True)
def _cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(home / "cache"))


def teacher(home: Path, name: str) -> Path:
    path = home / name
    return path if path.is_dir() else MADE[name][0](path)


def pictures(home: Path, side: int) -> Path:
    """Square, wide and high images with captions."""
    folder = home / f"pictures-{side}"
    draws = np.random.default_rng(0)
    for k in range(12):
        folder.mkdir(exist_ok=True)
        height, width = [(side, side), (side, 3 * side // 2), (3 * side // 2, side)][k % 3]
        pixels = draws.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k:02d}.png")
        (folder / f"{k:02d}.txt").write_text(["a cat", "two dogs"][k % 2])
    return folder


def recipe(data: dict[str, Any], **distill: Any) -> dict[str, Any]:
    """The recipe that comes with fewstep, made small."""
    stages = [{"parent": "teacher"}, {"parent": "stage-one", "steps": 2}]
    small = {"updates": 2, "batch_size": 8, "accumulate": 1, "precision": "fp32", "w": [0, 4],
             "stages": stages, "states": "noised", "checkpoint_activations": True}  # fmt: skip
    return {
        "name": "small-text",
        "base": "stable-diffusion",
        "data": {"held_out": 0.0, **data},
        "network": {"w_dim": 32},
        "distill": {**small, **distill},
        "evaluate": {"w": [0, 4]},
    }


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the encoders that are in memory whenever a stage is trained."""
    found: list[str] = []
    kinds = (transformers.PreTrainedModel, diffusers.AutoencoderKL, diffusers.AutoencoderDC,
             diffusers.AutoencoderKLQwenImage)  # fmt: skip
    train = runs.train

    def watched(*given: Any, **named: Any) -> Any:
        gc.collect()
        found.extend(type(o).__name__ for o in gc.get_objects() if isinstance(o, kinds))
        return train(*given, **named)

    monkeypatch.setattr(runs, "train", watched)
    return found


def distilled(home: Path, name: str, out: Path, made: dict[str, Any]) -> None:
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(made))
    folder = str(teacher(home, name))
    assert main(["distill", str(path), "--teacher", folder, "--out", str(out)]) == 0


@pytest.mark.parametrize("name", ["sana"])
def test_prompts_alone_are_enough(home: Path, tmp_path: Path, alone: list[str], name: str) -> None:
    """For the stages of the recipe itself."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\ntwo dogs\na house\n")
    data = {"name": str(prompts), "size": MADE[name][1]}
    own = load_recipe("stable-diffusion").distill
    stages = [{**s.model_dump(exclude_defaults=True), "updates": 2} for s in own.stages]
    distilled(home, name, tmp_path / "run", recipe(data, states=own.states, stages=stages))
    assert alone == []
    cards = [model_of(load(tmp_path / "run" / f"student-{n}")).card for n in (8, 4, 2)]
    assert [card.steps for card in cards] == [8, 4, 2]
    assert [card.stage.order for card in cards] == [2, 2, 1]
    assert {card.stage.states for card in cards} == {"trajectory"}


def test_a_model_of_stage_one_in_the_place_of_the_teacher_becomes_the_parent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = flux_folder(tmp_path / "flux", guidance=True)
    (tmp_path / "prompts.txt").write_text("a cat\n")
    stages = [{"parent": "teacher", "steps": n, "order": 2} for n in (4, 2)]
    data = {"name": str(tmp_path / "prompts.txt"), "size": 16}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(recipe(data, stages=stages, states="trajectory")))
    command = ["distill", str(path), "--teacher", str(folder), "--plan"]
    assert main(command) == 1
    changes = [f"distill.stages.{place}.parent=stage-one" for place in (0, 1)]
    options = [x for change in changes for x in ("--set", change)]
    assert f"start from that model: {' '.join(options)}\n" in capsys.readouterr().err
    assert main([*command, *options]) == 0


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_captioned_images_of_several_sizes(
    home: Path, tmp_path: Path, alone: list[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    side = MADE[name][1]
    sizes = [[side, side], [side, 3 * side // 2], [3 * side // 2, side]]
    data = {"name": str(pictures(home, side)), "size": side, "buckets": sizes}
    made = recipe(data, updates=6)
    seen: set[tuple[int, ...]] = set()
    call = runs.Model.forward

    def forward(self: Any, z: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.add(tuple(z.shape[1:]))
        return call(self, z, *rest)

    monkeypatch.setattr(runs.Model, "forward", forward)
    distilled(home, name, tmp_path / "run", made)
    assert alone == []
    channels, own, _ = model_of(load(tmp_path / "run" / "student-2")).card.shape
    assert seen == {
        (channels, own, own), (channels, own, 3 * own // 2), (channels, 3 * own // 2, own)
    }  # fmt: skip
    losses = (tmp_path / "run" / "training" / "student-2" / "metrics.jsonl").read_text()
    assert all(np.isfinite(json.loads(line)["loss"]) for line in losses.splitlines())


def test_buckets_that_do_not_fit_are_named_before_the_first_update(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for bucket, said in (([18, 16], "multiples of 4 pixels up to 32"), ([16, 36], "up to 32")):
        folder = tmp_path / "pictures"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (bucket[1], bucket[0])).save(folder / "one.png")
        (folder / "one.txt").write_text("a cat")
        path = tmp_path / "run.yaml"
        data = {"name": str(folder), "size": 16, "buckets": [bucket]}
        path.write_text(yaml.safe_dump(recipe(data)))
        given = ["--teacher", str(teacher(home, "sd3")), "--out", str(tmp_path / "run")]
        assert main(["distill", str(path), *given]) != 0
        text = " ".join(capsys.readouterr().err.split())
        assert said in text, text
        assert f"got [{bucket[0]}, {bucket[1]}]" in text
        assert not (tmp_path / "run" / "training").exists()


def test_buckets_of_a_teacher_from_a_pipeline_must_fit_that_pipeline(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = teacher(home, "sd3")
    asked: list[str] = []
    monkeypatch.setattr(buckets, "local", lambda name: asked.append(name) or folder)
    Image.new("RGB", (36, 36)).save(tmp_path / "one.png")
    (tmp_path / "one.txt").write_text("a cat")
    data = {"name": str(tmp_path), "size": 16, "held_out": 0.0}
    for bucket, said in ((20, None), (18, "multiples of 4 pixels up to 32"), (36, "up to 32")):
        made = recipe({**data, "buckets": [[bucket, bucket]]})
        made["latents"] = {"folder": "owner/model", "cond": "prompt"}
        checked = check_recipe({k: v for k, v in made.items() if k != "base"}, "test")
        images = open_dataset(checked.data)
        assert isinstance(images, Buckets)
        with nullcontext() if said is None else pytest.raises(RecipeError, match=said):
            buckets.check_fresh_buckets(images, checked)
    assert set(asked) == {"owner/model"}


def test_a_model_of_pixels_is_trained_at_several_sizes(tmp_path: Path) -> None:
    for k in range(12):
        folder = tmp_path / "pictures" / ("odd" if k % 2 else "even")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + 8 * (k // 6), 8), (20 * k,) * 3).save(folder / f"{k}.png")
    data = {"name": str(tmp_path / "pictures"), "size": 8, "buckets": [[8, 8], [8, 16]],
            "held_out": 0.0, "flip": True}  # fmt: skip
    made = {
        "name": "pixels",
        "data": data,
        "network": {"channels": [8, 16], "groups": 4, "w_dim": 32},
        "teacher": {"updates": 6, "batch_size": 4},
        "distill": {"updates": 4, "batch_size": 4, "stages": [{"parent": "teacher", "steps": 2}]},
    }
    path, out = tmp_path / "pixels.yaml", str(tmp_path / "run")
    path.write_text(yaml.safe_dump(made))
    assert main(["train", str(path), "--out", out]) == 0
    assert main(["distill", str(path), "--out", out]) == 0
    card = model_of(load(tmp_path / "run" / "student-2")).card
    assert card.shape == (3, 8, 8)
    assert card.training["buckets"] == ["8x8", "8x16"]
    wrong = ["--set", "data.buckets=[[8, 7]]", "--out", str(tmp_path / "wrong")]
    assert main(["train", str(path), *wrong]) != 0


def test_figures_are_of_the_models_own_size(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    opened_in_turn: list[str] = []
    plain = evaluate.open_dataset

    @contextmanager
    def in_turn() -> Iterator[None]:
        yield
        opened_in_turn.extend(opened)

    def opening(data: DataConfig, split: str) -> Dataset:
        opened.append(split)
        return plain(data, split)

    monkeypatch.setattr(check, "main_first", in_turn)
    monkeypatch.setattr(evaluate, "open_dataset", opening)
    data = {"name": str(pictures(home, 16)), "size": 16, "buckets": [[16, 16], [16, 24]]}
    small = {k: v for k, v in recipe(data).items() if k != "base"}
    made = check_recipe({**small, "latents": {}, "evaluate": {"w": [0], "samples": 4}}, "test")
    folder = teacher(home, "sd3")
    evaluation = check.check_report(Run(made, tmp_path / "run", "cpu"), [folder]).evaluation
    assert evaluation.dataset.shape == (3, 16, 16)
    assert len(evaluation.dataset) > 0
    # Several processes do not decode them at once.
    assert opened == opened_in_turn == ["train", "held-out"]


def test_xl_is_told_the_size_that_the_stock_pipeline_tells_it(home: Path) -> None:
    """With and without guidance, at a size that is not the model's own."""
    folder = teacher(home, "xl")
    model = model_of(load(folder))
    asked: list[torch.Tensor] = []
    network = model.network
    hook = network.register_forward_pre_hook(
        lambda _, args, named: asked.append(named["added_cond_kwargs"]["time_ids"]),
        with_kwargs=True,
    )
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    network_of_pipe = pipe.unet.register_forward_pre_hook(
        lambda _, args, named: asked.append(named["added_cond_kwargs"]["time_ids"]),
        with_kwargs=True,
    )
    pipe(
        "a cat", height=16, width=24, num_inference_steps=1, guidance_scale=3, output_type="latent"
    )
    z, phi, w = torch.randn(1, 4, 8, 12), torch.tensor([1.0]), torch.zeros(1)
    with torch.no_grad():
        model(z, phi, encode_prompts(folder, ["a cat"]), w)
        model(z, phi, repeat_null(model.null_cond, 1), w)
        model(z[..., :8], phi, repeat_null(model.null_cond, 1), w)
    hook.remove()
    network_of_pipe.remove()
    stock, cond, null, own = asked
    assert torch.equal(stock, torch.cat([cond, null]))
    assert own.tolist() == [[16, 16, 0, 0, 16, 16]]


def test_the_length_of_prompts_is_a_setting_that_every_model_keeps(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\ntwo dogs\na house\n")
    made = recipe({"name": str(prompts), "size": 16}, states="trajectory", w=[2, 2])
    made |= {"latents": {"max_sequence_length": 3}, "evaluate": {"w": [2]}}
    distilled(home, "sd3 without t5", tmp_path / "run", made)
    folder = tmp_path / "run" / "student-2"
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    cond = encode_prompts(folder, ["two dogs"])
    clip = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer").model_max_length
    assert isinstance(cond, dict)
    assert cond["text"].shape[1] == clip + 3
    ours = fewstep.sample(load(folder), cond, w=2.0, z=noise)
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None
    )
    call = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "latent"}
    theirs, other = (
        pipe("two dogs", latents=noise, max_sequence_length=length, **call).images
        for length in (3, 30)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert float((ours - other).abs().max()) > 1e-3
    assert "guidance_scale=1, max_sequence_length=3\n" in (folder / "README.md").read_text()
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump({**made, "latents": {"max_sequence_length": 4}}))
    capsys.readouterr()
    out = ("--teacher", str(tmp_path / "run" / "teacher"), "--out", str(tmp_path / "other"))
    assert main(["distill", str(path), *out]) == 1
    said = capsys.readouterr().err
    assert "latents.max_sequence_length must be that of" in said
    assert "fewstep.json, 3, got 4" in said


def test_a_length_is_refused_where_the_tokenizer_has_it(home: Path) -> None:
    with pytest.raises(RangeError, match="must be left out for StableDiffusionXLPipeline"):
        encode_prompts(teacher(home, "xl"), ["a cat"], max_sequence_length=3)
