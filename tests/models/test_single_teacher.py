"""Single-file checkpoints in the place of a teacher's folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.inside import fewstep as command
from tests.models.pipelines import edit, w_student
from tests.models.test_export_single import v1, v2, xl
from torch import Tensor

import fewstep
from fewstep.errors import FolderError
from fewstep.files.hub import local
from fewstep.folders import card_in, encode_prompts, encoders_sha256, load, save_model
from fewstep.folders.export.single_file import TENSORS
from fewstep.models import card_of, model_of

Tensors = dict[str, Tensor]
FIRST = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


def tensors_of(stock: Path) -> Tensors:
    """A teacher's tensors under the names of the original code."""
    model = model_of(load(stock))
    tensors = TENSORS[model.card.family](model)
    return {k: t.contiguous().clone() for k, t in tensors.items()}


def checkpoint(stock: Path, file: Path, tensors: Tensors | None = None) -> Path:
    """A single file of a teacher, and beside it the settings of its parts without weights."""
    save_file(tensors_of(stock) if tensors is None else tensors, file, metadata={"format": "pt"})
    ignored = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(stock, file.with_suffix(""), ignore=ignored, dirs_exist_ok=True)
    return file


@pytest.mark.parametrize("make", [v1, v2, xl])
def test_a_checkpoint_is_the_folder_that_it_was_made_of(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    stock = make(tmp_path / "stock")
    file = checkpoint(stock, tmp_path / "dream.safetensors")
    card = card_in(file)
    assert card.model_copy(update={"name": "stock"}) == card_in(stock)
    assert card.name == "dream"
    conds = [encode_prompts(place, ["a cat"]) for place in (file, stock)]
    drawn = [
        fewstep.sample(load(place), cond, w=2.0, steps=2, seed=1)
        for place, cond in zip((file, stock), conds, strict=True)
    ]
    assert torch.equal(*drawn)
    save_model(w_student(local(file), 4), tmp_path / "student")
    student = card_of(load(tmp_path / "student"))
    assert [(p.name, p.sha256) for p in student.parents] == [("dream", card.weights_sha256)]


RECIPE = """
name: dream
data: {name: prompts.txt, size: 16}
latents: {cond: prompt}
distill:
  {w: [0, 4], updates: 1, batch_size: 8, states: trajectory, stages: [{parent: teacher, steps: 4}]}
"""


def test_commands_take_a_checkpoint_as_a_teacher(sd: Path, tmp_path: Path) -> None:
    file = checkpoint(sd, tmp_path / "dream.safetensors")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    (tmp_path / "dream.yaml").write_text(RECIPE)
    arguments = ("distill", "dream.yaml", "--teacher", "dream.safetensors", "--out", "run")
    for more in (("--plan",), ()):
        done = command(*arguments, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    teacher, student = (card_in(tmp_path / "run" / name) for name in ("teacher", "student-4"))
    assert teacher.weights_sha256 == card_in(file).weights_sha256 == student.parents[-1].sha256
    assert sorted(p.name for p in (tmp_path / "run" / "student-4").iterdir() if p.is_dir()) == [
        "scheduler", "text_encoder", "tokenizer", "unet", "vae",
    ]  # fmt: skip
    shown = command("show", "dream.safetensors", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    drawn = command(
        "sample", "dream.safetensors", "--prompt", "a cat", "--steps", 2, "--out", "x.png",
        cwd=tmp_path,
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr


def test_half_precision_and_other_settings_are_other_teachers(sd: Path, tmp_path: Path) -> None:
    tensors = tensors_of(sd)
    whole = checkpoint(sd, tmp_path / "whole.safetensors", tensors)
    half = checkpoint(sd, tmp_path / "half.safetensors", {k: t.half() for k, t in tensors.items()})
    stored = load_file(local(half) / "unet" / "diffusion_pytorch_model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16}
    assert {p.dtype for p in model_of(load(half)).parameters()} == {torch.float32}
    assert card_in(half).weights_sha256 != card_in(whole).weights_sha256
    assert encoders_sha256(half) != encoders_sha256(whole)
    before = local(whole)
    assert local(whole) == before
    edit(whole.with_suffix("") / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    assert local(whole) != before
    assert card_in(whole).prediction == "v_prediction"


def test_what_is_wrong_with_a_file_is_said(
    sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = tensors_of(sd)
    encoder = next(k for k in tensors if k.endswith("fc1.weight"))

    def without(name: str) -> Tensors:
        return {k: t for k, t in tensors.items() if k != name}

    def network(prefix: str) -> Tensors:
        return {prefix + k: torch.zeros(1) for k in ("img_in.weight", "double_blocks.0.x")}

    cases: dict[str, tuple[Tensors, str]] = {
        "no-encoder-tensor": (without(encoder), "and .*fc1.weight is missing"),
        "no-tensor": (without(FIRST), "cannot be converted by diffusers"),
        "other-shape": ({**tensors, FIRST: torch.zeros(3)}, "cannot be converted by diffusers"),
        "more": (
            {**tensors, "model.diffusion_model.x": torch.zeros(1)},
            r"must hold the network that its settings describe",
        ),
        "quantised": (
            {**tensors, FIRST: tensors[FIRST].to(torch.float8_e4m3fn)},
            "must be a float .*got F8_E4M3",
        ),
        "predicts-v": ({**tensors, "v_pred": torch.zeros(0)}, "says that its network predicts v"),
        "ztsnr": ({**tensors, "ztsnr": torch.zeros(0)}, "its noise schedule ends in pure noise"),
        "unet": (
            {k: t for k, t in tensors.items() if k.startswith("model.diffusion_model.")},
            "a network alone; .*UNet2DConditionModel.from_single_file.*unet=net",
        ),
        "flux": (network("model.diffusion_model."), "FluxTransformer2DModel.*transformer=net"),
        "bare": (network(""), "a network alone; .*FluxTransformer2DModel"),
        "vae": (
            {k: t for k, t in tensors.items() if k.startswith("first_stage_model.")},
            "an autoencoder alone",
        ),
        "lora": ({"lora_unet_x.lora_down.weight": torch.zeros(1)}, "holds a LoRA adapter"),
    }
    for name, (given, wrong) in cases.items():
        refused(checkpoint(sd, tmp_path / f"{name}.safetensors", given), wrong)
    whole = checkpoint(sd, tmp_path / "whole.safetensors", tensors)
    cut = checkpoint(sd, tmp_path / "cut.safetensors", tensors)
    cut.write_bytes(whole.read_bytes()[:-100])
    refused(cut, "cut short")
    cut.write_bytes(whole.read_bytes()[:100])
    refused(cut, "no readable safetensors file")
    pickled = tmp_path / "dream.ckpt"
    pickled.write_bytes(b"\x80\x04not to be opened")
    refused(pickled, "pickled weights.*from_single_file")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    shutil.rmtree(tmp_path / "whole")
    refused(whole, f"weights alone.*Put those of its pipeline.*into {tmp_path}/whole, or run once")
    assert not (tmp_path / "cache").exists()


def refused(file: Path, wrong: str) -> None:
    with pytest.raises(FolderError, match=wrong) as caught:
        load(file)
    assert "\n" not in str(caught.value)
