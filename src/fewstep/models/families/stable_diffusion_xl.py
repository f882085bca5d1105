"""Stable Diffusion XL: two CLIP text encoders, pooled text, and the picture's size and crop.

cond: a dict of text (B, L, D), pooled (B, P), and time_ids (B, 6): original height and width, top
and left of the crop, target height and width, in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.errors import ShapeError
from fewstep.files.parts import read_json, size_of, vae_factor
from fewstep.models.card import Card
from fewstep.models.families.family import Family
from fewstep.models.families.stable_diffusion import STABLE_DIFFUSION
from fewstep.models.families.text import check_text, check_unet, parts_of, time_of_unet

NAME = "stable-diffusion-xl"
KEYS = ("text", "pooled", "time_ids")


def _call(network: Any, z: Tensor, timestep: Tensor, cond: Cond, w: Tensor | None) -> Tensor:
    parts = {key: tensor.to(z.dtype) for key, tensor in parts_of(cond, KEYS).items()}
    parts["time_ids"] = _scaled(parts["time_ids"], network, z)
    out: Tensor = network(
        z,
        timestep,
        parts["text"],
        timestep_cond=w,
        added_cond_kwargs={"text_embeds": parts["pooled"], "time_ids": parts["time_ids"]},
        return_dict=False,
    )[0]
    return out


def _scaled(time_ids: Tensor, network: Any, z: Tensor) -> Tensor:
    """Return the sizes (B, 6) of the states z, where those of the model's own size are given.

    So a condition, the unconditional one too, says of another size what the stock pipeline says
    when it is asked for a picture of that size.
    """
    own = network.config.sample_size
    own_height, own_width = (own, own) if isinstance(own, int) else own
    heights, widths = time_ids[:, ::2], time_ids[:, 1::2]
    scaled = [heights * (z.shape[2] / own_height), widths * (z.shape[3] / own_width)]
    return torch.stack(scaled, dim=2).flatten(1)


def _check_cond(network: Any, card: Card, cond: Cond) -> None:
    parts = parts_of(cond, KEYS)
    check_text(parts["text"], network.config.cross_attention_dim)
    if parts["time_ids"].shape[1:] != (6,) or parts["pooled"].ndim != 2:
        raise ShapeError(
            f"time_ids {tuple(parts['time_ids'].shape)} and pooled "
            f"{tuple(parts['pooled'].shape)}; they must be (B, 6) and (B, P)."
        )


def _condition(made: tuple[Any, ...], folder: Path) -> Cond:
    """Return both encoders' layers before the last, side by side, at the full picture size."""
    text, _, pooled, _ = made
    size = picture_size(folder)
    sizes = torch.tensor([*size, 0, 0, *size], dtype=torch.float32, device=text.device)
    return {"text": text, "pooled": pooled, "time_ids": sizes.repeat(len(text), 1)}


def picture_size(folder: Path) -> tuple[int, int]:
    """Return (height, width) in pixels of the pictures that a pipeline folder draws by default."""
    path, factor = folder / "unet" / "config.json", vae_factor(folder)
    height, width = size_of(read_json(path), path)
    return height * factor, width * factor


def _zeros(cond: Cond) -> Cond:
    return {
        k: t if k == "time_ids" else torch.zeros_like(t) for k, t in parts_of(cond, KEYS).items()
    }


def _conditions(index: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    zeros = index.get("force_zeros_for_empty_prompt", True)
    return {"null_prompt": None if zeros else ""}


STABLE_DIFFUSION_XL = Family(
    name=NAME,
    pipelines=(
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
    ),
    parts={
        **STABLE_DIFFUSION.parts,
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer_2": ("CLIPTokenizer",),
    },
    call=_call,
    slot="features",
    time_features=time_of_unet,
    check_config=partial(check_unet, name=NAME, wanted={"addition_embed_type": "text_time"}),
    conditions=_conditions,
    check_cond=_check_cond,
    condition=_condition,
    zeros=_zeros,
)
