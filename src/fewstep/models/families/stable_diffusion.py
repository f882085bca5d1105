"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, its last layer; cond: (B, L, D) text."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.errors import ShapeError
from fewstep.models.card import Card
from fewstep.models.families.family import Family
from fewstep.models.families.text import check_text, check_unet, empty_prompt, time_of_unet

NAME = "stable-diffusion"


def _text(cond: Cond) -> Tensor:
    if not isinstance(cond, Tensor):
        raise ShapeError("this model's condition is one tensor of text embeddings, not a dict.")
    return cond


def _call(network: Any, z: Tensor, timestep: Tensor, cond: Cond, w: Tensor | None) -> Tensor:
    text = _text(cond).to(z.dtype)
    out: Tensor = network(z, timestep, text, timestep_cond=w, return_dict=False)[0]
    return out


def _check_cond(network: Any, card: Card, cond: Cond) -> None:
    check_text(_text(cond), network.config.cross_attention_dim)


def _condition(made: tuple[Any, ...], folder: Path) -> Cond:
    text: Tensor = made[0]
    return text


def _zeros(cond: Cond) -> Cond:
    return torch.zeros_like(_text(cond))


STABLE_DIFFUSION = Family(
    name=NAME,
    pipelines=(
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
    ),
    parts={
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": ("CLIPTokenizer",),
    },
    call=_call,
    slot="features",
    time_features=time_of_unet,
    check_config=partial(check_unet, name=NAME, wanted={"addition_embed_type": None}),
    conditions=empty_prompt,
    check_cond=_check_cond,
    condition=_condition,
    zeros=_zeros,
)
