"""The folder is the export: stock parts load it and sample from it as fewstep does."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.pipelines.latent_consistency_models import pipeline_latent_consistency_text2img

import fewstep
from fewstep.core.denoiser import Guided
from fewstep.core.grid import cosine
from fewstep.core.seed import Noise
from fewstep.errors import FewstepError, FolderError, RangeError
from fewstep.folders import load, load_model, save_model
from fewstep.models import Model, card_of
from fewstep.models.clocks.native import native_scheduler
from fewstep.models.pipeline import ClassConditionalPipeline

STOCK = pipeline_latent_consistency_text2img.LatentConsistencyModelPipeline


def stock_loop(folder: Path, z: torch.Tensor, cond: torch.Tensor, w: float, n: int) -> torch.Tensor:
    """What a user writes with diffusers alone."""
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval()
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(n)
    features = STOCK.get_guidance_scale_embedding(
        None, torch.full((len(z),), w), unet.config.time_cond_proj_dim
    )
    with torch.no_grad():
        for t in scheduler.timesteps:
            v = unet(z, t, None, class_labels=cond, timestep_cond=features).sample
            z = scheduler.step(v, t, z).prev_sample
    return z


@pytest.mark.parametrize(("n", "w"), [(1, 4.0), (2, 1.3), (4, 0.0), (4, 4.0), (8, 2.0), (16, 1.3)])
def test_a_stock_loop_reproduces_sample(student: Model, tmp_path: Path, n: int, w: float) -> None:
    stage = fewstep.Stage(None, "teacher", steps=n)
    student.card = student.card.model_copy(update={"stage": stage})
    save_model(student, tmp_path / "m")
    cond = torch.arange(10)
    z = Noise(0, range(10)).draw((1, 8, 8), torch.float32, torch.device("cpu"))
    ours = fewstep.sample(fewstep.load(tmp_path / "m"), cond, w=w, steps=n, seed=0)
    theirs = stock_loop(tmp_path / "m", z, cond, w, n)
    assert float((ours - theirs).abs().max()) < 1e-4


def test_reload_is_bit_equal(student: Model, tmp_path: Path) -> None:
    card = save_model(student, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert again.card == card
    for key, value in student.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


def test_a_teacher_loads_as_a_guided_pair(teacher: Model, tmp_path: Path) -> None:
    save_model(teacher, tmp_path / "t")
    loaded = load(tmp_path / "t")
    assert isinstance(loaded, Guided)
    assert loaded.passes == 2
    assert card_of(loaded).is_teacher
    x = fewstep.sample(loaded, torch.arange(3), w=7.0, steps=3)
    assert x.shape == (3, 1, 8, 8)


def test_folder_holds_stock_parts_only(student: Model, tmp_path: Path) -> None:
    save_model(student, tmp_path / "m")
    files = {str(p.relative_to(tmp_path / "m")) for p in (tmp_path / "m").rglob("*") if p.is_file()}
    assert files == {
        "fewstep.json",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16, 1024])
def test_native_scheduler_walks_the_cosine_grid(steps: int) -> None:
    scheduler = native_scheduler()
    scheduler.set_timesteps(steps)
    angles = [math.pi / 2 * (int(t) + 1) / 1024 for t in scheduler.timesteps]
    assert angles == pytest.approx(list(cosine(steps)[:-1]), abs=1e-12)


def test_pipeline_draws_what_sample_draws(student: Model, tmp_path: Path) -> None:
    save_model(student, tmp_path / "m")
    pipe = ClassConditionalPipeline.from_pretrained(tmp_path / "m")
    pipe.set_progress_bar_config(disable=True)
    z = Noise(5, range(4)).draw((1, 8, 8), torch.float32, torch.device("cpu"))
    images = pipe([1, 2, 3, 4], guidance_scale=3.0, latents=z, output_type="pt").images
    ours = fewstep.sample(student, torch.tensor([1, 2, 3, 4]), w=2.0, steps=4, seed=5)
    assert float((images - ours).abs().max()) < 1e-4
    pil = pipe([1, 2], 4, 3.0, generator=torch.Generator().manual_seed(0)).images
    assert [(p.size, p.mode) for p in pil] == [((8, 8), "L")] * 2


def test_pipeline_guides_a_teacher_by_two_passes(teacher: Model, tmp_path: Path) -> None:
    save_model(teacher, tmp_path / "t")
    pipe = ClassConditionalPipeline.from_pretrained(tmp_path / "t")
    pipe.set_progress_bar_config(disable=True)
    z = Noise(5, range(4)).draw((1, 8, 8), torch.float32, torch.device("cpu"))
    images = pipe([1, 2, 3, 4], 8, 3.0, latents=z, output_type="pt").images
    ours = fewstep.sample(load(tmp_path / "t"), torch.tensor([1, 2, 3, 4]), w=2.0, steps=8, seed=5)
    assert float((images - ours).abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("call", "match"),
    [
        ({"num_inference_steps": 8}, "made for 4"),
        ({"guidance_scale": 9.0}, r"\[1, 5\]"),
        ({"class_labels": [12]}, r"0\.\.9"),
    ],
)
def test_pipeline_refuses_what_the_model_was_not_made_for(
    student: Model, tmp_path: Path, call: dict[str, object], match: str
) -> None:
    save_model(student, tmp_path / "m")
    pipe = ClassConditionalPipeline.from_pretrained(tmp_path / "m")
    with pytest.raises(RangeError, match=match):
        pipe(**{"class_labels": [1], "guidance_scale": 2.0, **call})


def damage(folder: Path, how: str) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "cut at the head":
        weights.write_bytes(b"")
    elif how == "no weights":
        weights.unlink()
    elif how == "no card":
        (folder / "fewstep.json").unlink()
    elif how == "card cut":
        (folder / "fewstep.json").write_text('{"format": 1, "fewst')
    elif how == "card of tomorrow":
        (folder / "fewstep.json").write_text(json.dumps({"format": 2}))
    elif how == "card with a typo":
        card = json.loads((folder / "fewstep.json").read_text())
        (folder / "fewstep.json").write_text(json.dumps({**card, "w_rnge": [0, 1]}))
    elif how == "unet config cut":
        (folder / "unet" / "config.json").write_text('{"sample_size": 8,')


@pytest.mark.parametrize(
    "how",
    [
        "cut",
        "cut at the head",
        "no weights",
        "no card",
        "card cut",
        "card of tomorrow",
        "card with a typo",
        "unet config cut",
    ],
)
def test_a_damaged_folder_is_named_in_one_line(student: Model, tmp_path: Path, how: str) -> None:
    save_model(student, tmp_path / "m")
    damage(tmp_path / "m", how)
    with pytest.raises(FolderError, match=str(tmp_path / "m")) as caught:
        load(tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="does not exist"):
        load(tmp_path / "nothing")


def test_a_run_folder_says_which_models_are_in_it(student: Model, tmp_path: Path) -> None:
    save_model(student, tmp_path / "run" / "student-4")
    with pytest.raises(FolderError, match="student-4"):
        load(tmp_path / "run")


def test_a_failed_save_leaves_the_old_folder(
    student: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(student, tmp_path / "m")
    before = (tmp_path / "m" / "fewstep.json").read_text()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fewstep.folders.write.write_json", full)
    with pytest.raises((FewstepError, OSError)):
        save_model(student, tmp_path / "m")
    assert (tmp_path / "m" / "fewstep.json").read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
