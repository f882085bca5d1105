"""Weights are what they claim: every tensor is checked by name, whatever the part and the files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from tests.models.pipelines import dit_folder, edit, sd_folder, w_student

import fewstep
from fewstep.errors import FolderError, NonFiniteError
from fewstep.files import weights
from fewstep.folders import card_in, encode_prompts, load, load_vae, save_model
from fewstep.models import Model, card_of, model_of

Tensors = dict[str, torch.Tensor]
FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
OPEN: dict[str, Callable[[Path], Any]] = {
    "unet": load,
    "vae": load_vae,
    "text_encoder": lambda folder: encode_prompts(folder, ["a"]),
}


def change(file: Path, how: Callable[[Tensors], object]) -> None:
    tensors = load_file(file)
    how(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def third(tensors: Tensors) -> str:
    return sorted(tensors)[3]


def lacks(tensors: Tensors) -> None:
    del tensors[third(tensors)]


def lacks_half(tensors: Tensors) -> None:
    for name in sorted(tensors)[: len(tensors) // 2]:
        del tensors[name]


def has_more(tensors: Tensors) -> None:
    tensors["strange"] = torch.zeros(1)


def is_longer(tensors: Tensors) -> None:
    tensors[third(tensors)] = torch.cat([tensors[third(tensors)]] * 2)


def is_whole(tensors: Tensors) -> None:
    tensors[third(tensors)] = tensors[third(tensors)].to(torch.int8)


def is_infinite(tensors: Tensors) -> None:
    tensors[third(tensors)].view(-1)[0] = float("inf")


def is_nan(tensors: Tensors) -> None:
    tensors[third(tensors)].view(-1)[-1] = float("nan")


@pytest.mark.parametrize(
    ("how", "match"),
    [
        (lacks, r"got 1 missing \("),
        (lacks_half, r"got \d+ missing \(.*, \.\.\.\)"),
        (has_more, r"got 1 unexpected \(strange\)"),
        (is_longer, r"must have the shapes that config.json describes, got \S+ of shape \[\d+"),
        (is_whole, "must be a float"),
        (is_infinite, "weights must be finite, got 1 of"),
        (is_nan, "weights must be finite, got 1 of"),
    ],
)
@pytest.mark.parametrize("part", FILES)
def test_a_wrong_tensor_is_refused_by_its_name(
    sd: Path, tmp_path: Path, part: str, how: Callable[[Tensors], object], match: str
) -> None:
    shutil.copytree(sd, tmp_path / "sd")
    file = tmp_path / "sd" / FILES[part]
    name = third(load_file(file))
    change(file, how)
    with pytest.raises((FolderError, NonFiniteError), match=match) as caught:
        OPEN[part](tmp_path / "sd")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    if how not in (has_more, lacks_half):
        assert name in str(caught.value)


def test_a_dit_is_checked_too_and_may_have_a_w_input(tmp_path: Path) -> None:
    dit_folder(tmp_path / "dit", classes=10)
    file = tmp_path / "dit/transformer/diffusion_pytorch_model.safetensors"
    change(file, has_more)
    with pytest.raises(FolderError, match="strange"):
        load(tmp_path / "dit")


def test_old_names_and_buffers_of_text_encoders_are_understood(sd: Path, tmp_path: Path) -> None:
    shutil.copytree(sd, tmp_path / "sd")
    file = tmp_path / "sd" / FILES["text_encoder"]
    before = encode_prompts(sd, ["a"])
    tensors = {f"text_model.{k.removeprefix('text_model.')}": t for k, t in load_file(file).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    save_file(tensors, file, metadata={"format": "pt"})
    assert torch.equal(encode_prompts(tmp_path / "sd", ["a"]), before)  # type: ignore[arg-type]


@pytest.mark.parametrize("sharded", [False, True])
def test_a_variant_is_read_and_copied_without_its_name(tmp_path: Path, sharded: bool) -> None:
    sd_folder(tmp_path / "sd")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "sd").to(torch.float16)
    size = {"max_shard_size": "20KB"} if sharded else {}
    pipe.save_pretrained(tmp_path / "plain", **size)
    pipe.save_pretrained(tmp_path / "fp16", variant="fp16", **size)
    for name in ("plain", "fp16"):
        (tmp_path / name / "scheduler/scheduler_config.json").write_bytes(
            (tmp_path / "sd/scheduler/scheduler_config.json").read_bytes()
        )
    plain, named = load(tmp_path / "plain"), load(tmp_path / "fp16")
    assert card_of(named).weights_sha256 == card_of(plain).weights_sha256
    for a, b in zip(model_of(plain).parameters(), model_of(named).parameters(), strict=True):
        assert b.dtype == torch.float32
        assert torch.equal(a, b)
    save_model(w_student(tmp_path / "fp16"), tmp_path / "student")
    assert not list((tmp_path / "student").rglob("*fp16*"))
    StableDiffusionPipeline.from_pretrained(tmp_path / "student")
    a, b = (encode_prompts(tmp_path / name, ["a"]) for name in ("plain", "student"))
    assert torch.equal(a, b)  # type: ignore[arg-type]


def test_what_is_ambiguous_or_incomplete_is_refused(sd: Path, tmp_path: Path) -> None:
    def spoilt(*names: str) -> Path:
        folder = tmp_path / f"with {len(names)}"
        shutil.copytree(sd, folder)
        (folder / "unet" / FILES["unet"].split("/")[1]).rename(folder / "unet" / "kept")
        for name in names:
            shutil.copyfile(folder / "unet" / "kept", folder / "unet" / name)
        return folder

    stem, index = "diffusion_pytorch_model", "diffusion_pytorch_model.safetensors.index.json"
    with pytest.raises(FolderError, match=r"got several: .*bf16.*fp16"):
        load(spoilt(f"{stem}.fp16.safetensors", f"{stem}.bf16.safetensors"))
    both = spoilt()
    for names, match in (
        ({"a": f"{stem}-00001-of-00002.safetensors"}, "00002.safetensors is missing"),
        ({"a": "../../secret.safetensors"}, "must name files beside it"),
        ({"a": 7}, "no weight_map"),
        ([], "no weight_map"),
    ):
        (both / "unet" / index).write_text(json.dumps({"weight_map": names}))
        with pytest.raises(FolderError, match=match):
            weights.find_weights(both / "unet")
    shutil.copyfile(both / "unet" / "kept", both / "unet" / f"{stem}.safetensors")
    (both / "unet" / index).write_text(
        json.dumps({"weight_map": {"a": f"{stem}-00001-of-00001.safetensors"}})
    )
    shutil.copyfile(
        both / "unet" / f"{stem}.safetensors", both / "unet" / f"{stem}-00001-of-00001.safetensors"
    )
    with pytest.raises(FolderError, match="got several"):
        load(both)


@pytest.mark.parametrize(
    ("part", "config", "match"),
    [
        ("unet", {"layers_per_block": 10**9}, "layers_per_block must lie in"),
        ("unet", {"quantization_config": {"quant_method": "x"}}, "quantised"),
        ("unet", {"sample_size": "64"}, "sample_size must be"),
        ("unet", {"downsample_padding": {}}, "downsample_padding must be like 1"),
        ("vae", {"scaling_factor": 0.0}, "scaling_factor must be a finite number"),
        ("vae", {"latents_mean": [0.0], "latents_std": [1.0]}, "latents_mean must be null or 4"),
        ("vae", {"block_out_channels": [10**7, 8]}, "cannot be read|shapes"),
    ],
)
def test_settings_that_cannot_be_are_named(
    sd: Path, tmp_path: Path, part: str, config: dict[str, Any], match: str
) -> None:
    shutil.copytree(sd, tmp_path / "sd")
    edit(tmp_path / "sd" / part / "config.json", **config)
    with pytest.raises(FolderError, match=match):
        OPEN[part](tmp_path / "sd")


def test_stock_teachers_are_told_apart_by_their_weights(sd: Path, tmp_path: Path) -> None:
    shutil.copytree(sd, tmp_path / "other")
    change(tmp_path / "other" / FILES["unet"], lambda t: t["conv_out.bias"].add_(1))
    one, other = card_in(sd).weights_sha256, card_in(tmp_path / "other").weights_sha256
    assert len(one) == len(other) == 64
    assert one != other
    assert card_of(load(sd)).weights_sha256 == one


def test_weights_that_are_not_the_cards_are_refused(student: Model, tmp_path: Path) -> None:
    card = save_model(student, tmp_path / "m")
    file = tmp_path / "m" / FILES["unet"]
    change(file, lambda t: t["conv_out.bias"].add_(1))
    with pytest.raises(FolderError, match=rf"of sha256 {card.weights_sha256[:16]}, got"):
        load(tmp_path / "m")
    edit(tmp_path / "m" / "fewstep.json", weights_sha256="")
    found = card_of(load(tmp_path / "m")).weights_sha256
    assert len(found) == 64
    assert found != card.weights_sha256


def test_a_file_is_hashed_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"one")
    reads = []
    monkeypatch.setattr(weights, "SETTLED", -1e9)
    monkeypatch.setattr(weights, "sha256", lambda path: reads.append(path) or str(len(reads)))
    assert [weights.file_sha256(file) for _ in range(3)] == ["1"] * 3
    file.write_bytes(b"other")
    assert weights.file_sha256(file) == "2"


def test_a_file_that_was_just_written_is_hashed_again(tmp_path: Path) -> None:
    """Its time stamp may not change where it is written twice within one tick of the clock."""
    file = tmp_path / "x"
    file.write_bytes(b"one")
    first = weights.file_sha256(file)
    file.write_bytes(b"two")
    assert weights.file_sha256(file) != first


def test_weights_that_are_not_finite_are_not_saved(student: Model, tmp_path: Path) -> None:
    next(student.parameters()).data.view(-1)[0] = float("nan")
    with pytest.raises(NonFiniteError, match="weights must be finite"):
        save_model(student, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_an_adapter_that_is_not_the_cards_is_refused(sd: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from fewstep.models import Lora, student_of

    stage = fewstep.Stage("student-4", "teacher", updates=1, steps=4)
    lora = Lora(rank=2, keep_apart=True)
    save_model(student_of(load(sd), stage, (0.0, 4.0), w_dim=16, lora=lora), tmp_path / "m")
    file = tmp_path / "m/adapter/adapter_model.safetensors"
    change(file, lambda t: t[third(t)].add_(1))
    with pytest.raises(FolderError, match="of sha256"):
        load(tmp_path / "m")
