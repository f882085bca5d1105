"""What is no model folder is named, with the way to make one of it; pickles are never opened."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from tests.models.pipelines import dit_folder, edit, w_student

import fewstep
from fewstep.errors import FolderError
from fewstep.files.parts import without_paths
from fewstep.folders import card_in, encode_prompts, load, save_model
from fewstep.models import Model, card_of, student_of
from fewstep.models.pipeline import ClassConditionalPipeline

CHECKER = ["stable_diffusion", "StableDiffusionSafetyChecker"]


def weights(path: Path, name: str = "model.diffusion_model.x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.zeros(1)}, path)
    return path


def pickled(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x80\x04not to be opened")
    return path


def checkpoint(sd: Path, path: Path) -> Path:
    shutil.copytree(sd / "unet", path / "unet")
    return path


def bare(sd: Path, path: Path) -> Path:
    shutil.copytree(sd / "unet", path)
    return path


KINDS: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "one file": (
        lambda _, p: weights(p / "dream.safetensors"),
        "holds a network alone.*from_single_file.*save_pretrained",
    ),
    "pickled file": (lambda _, p: pickled(p / "v1-5.ckpt"), "single file of pickled weights"),
    "cut file": (lambda _, p: pickled(p / "x.safetensors"), "no readable safetensors file"),
    "text file": (lambda _, p: pickled(p / "notes.txt"), "is a file"),
    "lora file": (
        lambda _, p: weights(p / "style.safetensors", "unet.to_q.lora_A.weight"),
        "LoRA adapter.*load_lora_weights.*fuse_lora",
    ),
    "lora folder": (
        lambda _, p: weights(p / "pytorch_lora_weights.safetensors", "unet.x").parent,
        "LoRA adapter alone.*load_lora_weights",
    ),
    "checkpoint": (lambda sd, p: checkpoint(sd, p / "c"), r"part unet and no model_index\.json"),
    "bare part": (
        lambda sd, p: bare(sd, p / "b"),
        r"one part of a pipeline \(UNet2DConditionModel\) and has no model_index\.json",
    ),
    "part of a whole": (lambda sd, _: sd / "unet", "one part.*of the model in.*Give the whole"),
    "loose": (
        lambda _, p: weights(p / "f" / "a.safetensors").parent,
        "only the weights a.safetensors",
    ),
    "loose pickle": (lambda _, p: pickled(p / "f" / "a.ckpt").parent, "only the weights a.ckpt"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_folder_is_named(sd: Path, tmp_path: Path, kind: str) -> None:
    make, match = KINDS[kind]
    path = make(sd, tmp_path)
    for opens in (load, card_in):
        with pytest.raises(FolderError, match=match) as caught:
            opens(path)
        assert "\n" not in str(caught.value)


def stock_again(folder: Path, to: Path) -> Path:
    StableDiffusionPipeline.from_pretrained(folder).save_pretrained(to)
    return to


@pytest.mark.parametrize("pair", [False, True])
def test_a_student_that_diffusers_saved_again_needs_its_card(
    sd: Path, tmp_path: Path, pair: bool
) -> None:
    """A pair has no w input: without a mark it would be taken for a stock teacher."""
    stage = fewstep.Stage("student-4", "teacher", updates=1, steps=4, pair=pair)
    save_model(student_of(load(sd), stage, (0.0, 4.0), w_dim=16), tmp_path / "m")
    again = stock_again(tmp_path / "m", tmp_path / "again")
    with pytest.raises(FolderError, match=r"saved again by diffusers.*Copy fewstep\.json"):
        load(again)
    shutil.copyfile(tmp_path / "m" / "fewstep.json", again / "fewstep.json")
    assert card_of(load(again)).steps == 4


def test_a_teacher_that_diffusers_saved_again_loads(sd: Path, tmp_path: Path) -> None:
    save_model(load(sd), tmp_path / "t")
    assert card_of(load(stock_again(tmp_path / "t", tmp_path / "again"))).is_teacher


def test_a_class_model_that_diffusers_saved_again_needs_its_card(
    student: Model, tmp_path: Path
) -> None:
    save_model(student, tmp_path / "m")
    ClassConditionalPipeline.from_pretrained(tmp_path / "m").save_pretrained(tmp_path / "again")
    with pytest.raises(FolderError, match=r"saved again by diffusers.*Copy fewstep\.json"):
        load(tmp_path / "again")
    shutil.copyfile(tmp_path / "m" / "fewstep.json", tmp_path / "again" / "fewstep.json")
    assert load(tmp_path / "again").passes == 1


@pytest.mark.parametrize("how", ["pickled", "missing", "no extractor", "strange"])
def test_parts_that_are_never_run_are_not_needed(sd: Path, tmp_path: Path, how: str) -> None:
    folder = tmp_path / "sd"
    shutil.copytree(sd, folder)
    extractor = None if how == "no extractor" else ["transformers", "CLIPImageProcessor"]
    edit(
        folder / "model_index.json",
        safety_checker=CHECKER,
        feature_extractor=extractor,
        requires_safety_checker=True,
        **({"spy": ["os", "system"]} if how == "strange" else {}),
    )
    if how == "pickled":
        (folder / "safety_checker").mkdir()
        (folder / "safety_checker" / "config.json").write_text("{}")
        pickled(folder / "safety_checker" / "pytorch_model.bin")
    save_model(w_student(folder, 4), tmp_path / "m")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "m")
    assert pipe.safety_checker is None
    assert not list((tmp_path / "m").rglob("*.bin"))
    assert "spy" not in (tmp_path / "m" / "model_index.json").read_text()


def test_a_safe_part_that_is_never_run_is_copied(sd: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sd"
    shutil.copytree(sd, folder)
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text('{"size": 224}')
    edit(folder / "model_index.json", feature_extractor=["transformers", "CLIPImageProcessor"])
    save_model(w_student(folder, 4), tmp_path / "m")
    assert (tmp_path / "m" / "feature_extractor" / "preprocessor_config.json").is_file()


@pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer"])
def test_a_part_that_is_needed_is_missed_at_once(sd: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(sd, tmp_path / "sd")
    shutil.rmtree(tmp_path / "sd" / part)
    for opens in (load, card_in):
        with pytest.raises(FolderError, match=rf"{part}.* is missing"):
            opens(tmp_path / "sd")


def test_no_path_of_this_machine_is_saved(sd: Path, student: Model, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "alice" / "sd"
    shutil.copytree(sd, folder)
    for part, key in (
        ("text_encoder/config.json", "_name_or_path"),
        ("tokenizer/tokenizer_config.json", "name_or_path"),
        ("tokenizer/tokenizer_config.json", "tokenizer_file"),
        ("model_index.json", "_name_or_path"),
        ("vae/config.json", "_name_or_path"),
    ):
        edit(folder / part, **{key: str(folder)})
    save_model(w_student(folder, 4), tmp_path / "m")
    save_model(load(tmp_path / "m"), tmp_path / "again")
    save_model(student, tmp_path / "class")
    save_model(load(tmp_path / "class"), tmp_path / "class-again")
    for saved in ("m", "again", "class", "class-again"):
        files = [p for p in (tmp_path / saved).rglob("*") if p.is_file()]
        assert len(files) >= 4
        assert not [p for p in files if str(tmp_path).encode() in p.read_bytes()]
        assert not [p for p in files if b"alice" in p.read_bytes()]
    a, b = (encode_prompts(path, ["a"]) for path in (folder, tmp_path / "m"))
    assert torch.equal(a, b)  # type: ignore[arg-type]


def test_what_is_no_path_stays() -> None:
    kept = {"_name_or_path": "openai/clip-vit-large-patch14", "unk_token": "/", "size": {"n": 1}}
    private = ("/root/x", "~/x", "./x", "../x", "C:\\x", "\\\\host\\x", "file:///x", "a/b/c")
    assert without_paths(kept) == kept
    for path in private:
        assert without_paths({"a": [{"vocab_file": path, "n": 1}]}) == {"a": [{"n": 1}]}


def test_an_unsaved_dit_student_is_a_parent(tmp_path: Path) -> None:
    dit_folder(tmp_path / "dit", classes=10)
    teacher = load(tmp_path / "dit")
    one = fewstep.Stage("dit-4", "teacher", updates=1, steps=4)
    student = student_of(teacher, one, (0.0, 4.0), w_dim=16)
    z, phi, w = torch.randn(2, 4, 8, 8), torch.full((2,), 1.0), torch.full((2,), 2.0)
    cond = torch.tensor([1, 2])
    student(z, phi, cond, w).sum().backward()
    child = student_of(student, fewstep.Stage("dit-2", "dit-4", updates=1, steps=2), (0.0, 4.0))
    for p in student.parameters():
        p.data.zero_()
    with torch.no_grad():
        before = child(z, phi, cond, w)
        child.network.w_projection.weight.data.normal_()
        assert not torch.equal(child(z, phi, cond, w), before)  # its hook is its own
