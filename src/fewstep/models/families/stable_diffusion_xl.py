"""Stable Diffusion XL: two CLIP text encoders, pooled text, and the picture's size and crop.

cond: a dict of text (B, L, D), pooled (B, P), and time_ids (B, 6): original height and width, top
and left of the crop, target height and width, in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.errors import FolderError, ShapeError
from fewstep.files.parts import read_json, size_of, vae_factor
from fewstep.models.card import Card
from fewstep.models.families.family import Family
from fewstep.models.families.stable_diffusion import STABLE_DIFFUSION
from fewstep.models.families.text import check_text, null_prompt, unet_config
from fewstep.models.text import encode

NAME = "stable-diffusion-xl"
KEYS = ("text", "pooled", "time_ids")


def _parts(cond: Cond) -> dict[str, Tensor]:
    if not isinstance(cond, dict) or set(cond) != set(KEYS):
        found = sorted(cond) if isinstance(cond, dict) else "a tensor"
        raise ShapeError(
            f"this model's condition is a dict of {', '.join(KEYS)}, not {found}. Make it with "
            "fewstep.models.encode_prompts(folder, prompts)."
        )
    return cond


def _call(network: Any, z: Tensor, timestep: Tensor, cond: Cond, w: Tensor | None) -> Tensor:
    parts = {key: tensor.to(z.dtype) for key, tensor in _parts(cond).items()}
    out: Tensor = network(
        z,
        timestep,
        parts["text"],
        timestep_cond=w,
        added_cond_kwargs={"text_embeds": parts["pooled"], "time_ids": parts["time_ids"]},
        return_dict=False,
    )[0]
    return out


def _check_cond(network: Any, card: Card, cond: Cond) -> None:
    parts = _parts(cond)
    check_text(parts["text"], network.config.cross_attention_dim)
    if parts["time_ids"].shape[1:] != (6,) or parts["pooled"].ndim != 2:
        raise ShapeError(
            f"time_ids {tuple(parts['time_ids'].shape)} and pooled "
            f"{tuple(parts['pooled'].shape)}; they must be (B, 6) and (B, P)."
        )


def _encode(
    folder: Path, prompts: Sequence[str], device: str, batch_size: int
) -> dict[str, Tensor]:
    """Return both encoders' layers before the last, side by side, at the full picture size."""
    first, second = (
        encode(
            folder,
            prompts,
            tokenizer=f"tokenizer{end}",
            encoder=f"text_encoder{end}",
            device=device,
            batch_size=batch_size,
        )
        for end in ("", "_2")
    )
    if second.pooled is None:
        raise FolderError(f"{folder / 'text_encoder_2'} gives no pooled text (no projection).")
    lengths = first.penultimate.shape[1], second.penultimate.shape[1]
    if lengths[0] != lengths[1]:
        raise FolderError(
            f"{folder}: both tokenizers must have one model_max_length, got {lengths[0]} and "
            f"{lengths[1]}. Copy tokenizer/ and tokenizer_2/ again."
        )
    height, width = picture_size(folder)
    ids = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=device)
    return {
        "text": torch.cat([first.penultimate, second.penultimate], dim=-1),
        "pooled": second.pooled,
        "time_ids": ids.repeat(len(prompts), 1),
    }


def picture_size(folder: Path) -> tuple[int, int]:
    """Return (height, width) in pixels of the pictures that a pipeline folder draws by default."""
    path, factor = folder / "unet" / "config.json", vae_factor(folder)
    height, width = size_of(read_json(path), path)
    return height * factor, width * factor


def _zeros(cond: Cond) -> Cond:
    return {k: t if k == "time_ids" else torch.zeros_like(t) for k, t in _parts(cond).items()}


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
    check_config=unet_config(NAME, {"addition_embed_type": "text_time"}),
    conditions=_conditions,
    check_cond=_check_cond,
    null_cond=null_prompt(_encode, _zeros),
    encode=_encode,
)
