"""`single-file`: a checkpoint in the original layout, with one w fixed in its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from fewstep.atomic import atomic_folder
from fewstep.errors import RangeError
from fewstep.files.parts import read_json
from fewstep.files.weights import load_part
from fewstep.folders.export.format import ARCHITECTURES, Format, Options, metadata, sha256_of
from fewstep.folders.export.original_keys import UNET, of_clip, of_open_clip, of_unet, of_vae
from fewstep.folders.export.original_transformers import FLUX, SD3, of_sana, of_transformer
from fewstep.folders.export.stock_folder import fixed_line, folded, is_for_one_w
from fewstep.folders.vae import load_vae
from fewstep.models.families.stable_diffusion import STABLE_DIFFUSION
from fewstep.models.model import Model
from fewstep.models.scheduler import is_lcm, stock_scheduler
from fewstep.models.student import merge_adapter

FILE = "model.safetensors"
OPENAI = "quick_gelu"  # the activation of OpenAI's CLIP; OpenCLIP has another


def write(model: Model, out: Path, options: Options) -> tuple[str, ...]:
    """Write a folder of one checkpoint and the scheduler whose steps the student makes."""
    family, card = model.card.family, model.card
    if family not in TENSORS or model.source is None:
        raise RangeError(
            f"only students of {', '.join(TENSORS)} become single files, got one of {family}, of "
            "which diffusers reads none. Use --to diffusers."
        )
    sampler = card.sampler or "deterministic"
    if sampler != "deterministic" and not is_lcm(model.clock, sampler):
        raise RangeError(
            f"{card.name} was made for the sampler {sampler!r}, whose steps no stock scheduler "
            "makes on its clock, so it cannot become a single file. Draw with fewstep."
        )
    as_it_is = model.family.slot == "value" or is_for_one_w(model)
    made = merge_adapter(model) if options.w is None and as_it_is else folded(model, options)
    tensors = TENSORS[family](made)
    low, high = made.card.w_range or (0.0, 0.0)
    # A network with guidance embedded takes w as a number, also one that was trained for one w.
    w = low if low == high and made.family.slot != "value" else None
    facts = {
        "model": card.name, "weights_sha256": sha256_of(card), "steps": card.steps, "w": w,
    }  # fmt: skip
    title = card.name if w is None else f"{card.name} at w = {w:g}"
    about = metadata(title, made, facts, _architecture(made, model.source))
    with atomic_folder(out, FILE) as partial:
        plain = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}
        save_file(plain, partial / FILE, metadata=about)
        stock_scheduler(model.clock, card.sampler).save_pretrained(partial / "scheduler")
    what = f"{FILE}, the transformer alone" if model.family.part == "transformer" else FILE
    if w is None:
        return (f"w is an input of {what}; use guidance scale 1 + w",)
    return (fixed_line(made, f"the weights of {what}"),)


def _architecture(model: Model, source: Path) -> str:
    """Return the name of the original architecture."""
    if model.card.family != STABLE_DIFFUSION.name:
        return ARCHITECTURES[model.card.family]
    config = read_json(source / "text_encoder" / "config.json")
    return f"stable-diffusion-v{1 if config.get('hidden_act') == OPENAI else 2}"


def _checkpoint(model: Model) -> dict[str, Tensor]:
    """Return the tensors of network, autoencoder and text encoders."""
    assert model.source is not None
    network, vae = model.network, load_vae(model.source)
    return {
        **of_unet(network.state_dict(), network.config.layers_per_block),
        **of_vae(vae.state_dict(), len(vae.config.block_out_channels)),
        **_encoders(model, model.source),
    }


def _encoders(model: Model, source: Path) -> dict[str, Tensor]:
    """Return the text encoders' tensors under their original names."""
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
        }
    if first.config.hidden_act == OPENAI:
        return of_clip(first.state_dict(), "cond_stage_model.transformer.")
    return of_open_clip(first.state_dict(), "cond_stage_model.model.")


def _sd3(model: Model) -> dict[str, Tensor]:
    return {UNET + key: t for key, t in of_transformer(model.network, SD3).items()}


def _flux(model: Model) -> dict[str, Tensor]:
    return of_transformer(model.network, FLUX)


def _sana(model: Model) -> dict[str, Tensor]:
    return of_sana(model.network)


def _qwen_image(model: Model) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = model.network.state_dict()
    return tensors


# Family -> model -> tensors under the names that published files have.
TENSORS: dict[str, Callable[[Model], dict[str, Tensor]]] = {
    "stable-diffusion": _checkpoint,
    "stable-diffusion-xl": _checkpoint,
    "stable-diffusion-3": _sd3,
    "flux": _flux,
    "flux-guided": _flux,
    "chroma": _flux,
    "sana": _sana,
    "qwen-image": _qwen_image,
}
SINGLE_FILE = Format(
    name="single-file",
    about="one file in the original layout, for one w: a whole checkpoint of Stable Diffusion 1, 2 "
    "or XL, or the transformer alone",
    takes=frozenset({"w"}),
    write=write,
)
