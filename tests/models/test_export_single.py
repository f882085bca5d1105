"""Single files: the original names of all tensors, and the images of the live student."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors import safe_open
from safetensors.torch import load_file
from tests.models.pipelines import dit_folder, draw_apart, sd_folder, text_encoder, xl_folder
from tests.models.test_families import live
from transformers import CLIPTextModel, CLIPTextModelWithProjection

import fewstep
from fewstep.distill.plan import Stage
from fewstep.errors import RangeError
from fewstep.folders import encode_prompts, load_vae, save_model
from fewstep.models import decode_latents, fold_w, model_of

ONE = Stage("student", "teacher", updates=1)
PROMPTS = ["a cat", "two dogs"]
W = 2.5
PIPELINES = {"v1": "StableDiffusionPipeline", "v2": "StableDiffusionPipeline"}
ARCHITECTURES = {
    "v1": "stable-diffusion-v1", "v2": "stable-diffusion-v2", "xl": "stable-diffusion-xl-v1-base"
}  # fmt: skip


def with_network(folder: Path, **changes: object) -> None:
    """Replace the network of a folder by one with other settings."""
    config = {**UNet2DConditionModel.load_config(folder / "unet"), **changes}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")


def v1(path: Path) -> Path:
    return sd_folder(path)


def v2(path: Path) -> Path:
    """A folder as Stable Diffusion 2's: OpenCLIP, linear projections, v-prediction."""
    folder = sd_folder(path, prediction_type="v_prediction")
    with_network(folder, use_linear_projection=True)
    config = text_encoder().config
    config.hidden_act = "gelu"
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


def xl(path: Path) -> Path:
    """An SDXL folder whose two encoders differ in size, as real ones do."""
    folder = xl_folder(path)
    with_network(folder, cross_attention_dim=16 + 24)
    config = text_encoder(projection=True).config
    config.hidden_size, config.hidden_act = 24, "gelu"
    CLIPTextModelWithProjection(config).save_pretrained(folder / "text_encoder_2")
    return folder


@pytest.mark.parametrize("make", [v1, v2, xl])
def test_a_single_file_draws_as_the_live_student(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(6)
        stock = make(tmp_path / "stock")
    student = live(stock, stage=ONE)
    save_model(student, tmp_path / "student")
    (line,) = fewstep.export(tmp_path / "student", tmp_path / "one", to="single-file", w=W)
    assert line == "w = 2.5 is fixed in the weights of model.safetensors; use guidance scale 1"
    file = tmp_path / "one" / "model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert metadata["modelspec.architecture"] == ARCHITECTURES[make.__name__]
    assert json.loads(metadata["fewstep"])["w"] == W

    # What diffusers makes of the names is where we came from.
    state, network = load_file(file), fold_w(student, W).network
    back = convert_ldm_unet_checkpoint(dict(state), network.config)
    assert back.keys() == network.state_dict().keys()
    vae = load_vae(stock)
    assert convert_ldm_vae_checkpoint(dict(state), vae.config).keys() == vae.state_dict().keys()

    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    call = {"prompt": PROMPTS, "guidance_scale": 1.0, "latents": noise}
    jobs = {
        str(n): {
            "folder": str(stock),
            "pipeline": PIPELINES.get(make.__name__, "StableDiffusionXLPipeline"),
            "call": {**call, "num_inference_steps": n},
            "single": str(file),
            "scheduler": str(tmp_path / "one"),
        }
        for n in (1, 2, 4, 8)
    }
    drawn, cond = draw_apart(jobs, tmp_path), encode_prompts(stock, PROMPTS)
    for n in (1, 2, 4, 8):
        z = fewstep.sample(student, cond, w=W, steps=n, z=noise)
        ours = (decode_latents(vae, z) / 2 + 0.5).clamp(0, 1)
        assert drawn[str(n)]["batches"] == [2] * n
        assert float((drawn[str(n)]["images"] - ours).abs().max()) < 1e-4


def test_what_has_no_single_file(sd: Path, tmp_path: Path) -> None:
    dit = live(dit_folder(tmp_path / "dit", classes=20))
    cases = [(dit, 1.0, "become single files, got one of dit"), (live(sd), None, "w is required")]
    cases += [(live(sd), 9.0, "w must lie in"), (model_of(fewstep.load(sd)), 1.0, "got a teacher")]
    for model, w, wrong in cases:
        with pytest.raises(RangeError, match=wrong):
            fewstep.export(model, tmp_path / "out", to="single-file", w=w)
