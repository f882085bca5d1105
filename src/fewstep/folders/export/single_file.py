"""`single-file`: a checkpoint in the original layout, with one w fixed in its weights."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from fewstep.atomic import atomic_folder
from fewstep.errors import RangeError
from fewstep.files.weights import load_part
from fewstep.folders.export.format import SHARED, Format, Options, metadata
from fewstep.folders.export.original_keys import of_clip, of_open_clip, of_unet, of_vae
from fewstep.folders.export.stock_folder import folded
from fewstep.folders.vae import load_vae
from fewstep.models.model import Model

FILE = "model.safetensors"
OPENAI = "quick_gelu"  # the activation of OpenAI's CLIP; OpenCLIP has another


def write(model: Model, out: Path, options: Options) -> tuple[str, ...]:
    """Write a folder of one checkpoint and the scheduler whose steps the student makes."""
    if model.card.family not in SHARED or model.source is None:
        raise RangeError(
            f"only students of {' and '.join(SHARED)} become single files, got one of "
            f"{model.card.family}. Use --to diffusers."
        )
    fixed, w = folded(model, options), options.w
    network, vae = fixed.network, load_vae(model.source)
    encoders, architecture = _encoders(model, model.source)
    tensors = {
        **of_unet(network.state_dict(), network.config.layers_per_block),
        **of_vae(vae.state_dict(), len(vae.config.block_out_channels)),
        **encoders,
    }
    card = model.card
    facts = {
        "model": card.name, "weights_sha256": card.weights_sha256, "steps": card.steps, "w": w,
    }  # fmt: skip
    about = {
        **metadata(f"{card.name} at w = {w:g}", card.steps, facts),
        "modelspec.architecture": architecture,
    }
    with atomic_folder(out, FILE) as partial:
        plain = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}
        save_file(plain, partial / FILE, metadata=about)
        model.clock.scheduler().save_pretrained(partial / "scheduler")
    return (f"w = {w:g} is fixed in the weights of {FILE}; use guidance scale 1",)


def _encoders(model: Model, source: Path) -> tuple[dict[str, Tensor], str]:
    """Return the text encoders' tensors under their original names, and the architecture."""
    import transformers

    parts = {
        name: load_part(getattr(transformers, kinds[0]), source / name)
        for name, kinds in model.family.parts.items()
        if name.startswith("text_encoder")
    }
    first = parts["text_encoder"]
    if "text_encoder_2" in parts:
        return {
            **of_clip(first.state_dict(), "conditioner.embedders.0.transformer."),
            **of_open_clip(parts["text_encoder_2"].state_dict(), "conditioner.embedders.1.model."),
        }, "stable-diffusion-xl-v1-base"
    if first.config.hidden_act == OPENAI:
        return of_clip(first.state_dict(), "cond_stage_model.transformer."), "stable-diffusion-v1"
    return of_open_clip(first.state_dict(), "cond_stage_model.model."), "stable-diffusion-v2"


SINGLE_FILE = Format(
    name="single-file",
    about="a checkpoint of Stable Diffusion 1, 2 or XL in the original layout, for one w",
    takes=frozenset({"w"}),
    write=write,
)
