"""Stable Diffusion 3 and 3.5: a flow-matching transformer of latents; two CLIP encoders and T5.

cond: a dict of text (B, L, D), both CLIP encoders' tokens and then T5's, and pooled (B, P). In a
folder without T5 its tokens are zeros, as in the stock pipeline. The guidance scale of the stock
pipeline is 1 + w. The network has no slot for w.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.errors import FolderError, ShapeError
from fewstep.files.parts import is_count
from fewstep.models.card import Card
from fewstep.models.families.family import Family, network_shape
from fewstep.models.families.text import (
    check_text,
    empty_prompt,
    of_time_and_text,
    parts_of,
    time_of_time_and_text,
)

KEYS = ("text", "pooled")


def _call(network: Any, z: Tensor, timestep: Tensor, cond: Cond, w: Tensor | None) -> Tensor:
    parts = parts_of(cond, KEYS)
    out: Tensor = network(
        z,
        encoder_hidden_states=parts["text"].to(z.dtype),
        pooled_projections=parts["pooled"].to(z.dtype),
        timestep=timestep,
        return_dict=False,
    )[0]
    return out


def _check_cond(network: Any, card: Card, cond: Cond) -> None:
    parts, size = parts_of(cond, KEYS), network.config.pooled_projection_dim
    check_text(parts["text"], network.config.joint_attention_dim)
    if parts["pooled"].shape != (len(parts["text"]), size):
        raise ShapeError(
            f"pooled must have the shape (B, {size}), got {tuple(parts['pooled'].shape)}. Make it "
            "with fewstep.folders.encode_prompts(folder, prompts)."
        )


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    channels, out = config.get("in_channels"), config.get("out_channels")
    if out not in (None, channels):
        raise FolderError(
            f"{path}: in_channels and out_channels must be as many, got {channels} and {out}. Give "
            "the text-to-image model."
        )
    if not is_count(config.get("patch_size")):
        raise FolderError(
            f"{path}: patch_size must be a whole number above 0, got {config.get('patch_size')!r}. "
            "Copy the file again."
        )


def _tokens(config: Mapping[str, Any], path: Path) -> int:
    _check_config(config, path)
    _, height, width = network_shape(config, path)
    side: int = config["patch_size"]
    return (height // side) * (width // side)


def _condition(made: tuple[Any, ...], folder: Path) -> Cond:
    text, _, pooled, _ = made
    return {"text": text, "pooled": pooled}


STABLE_DIFFUSION_3 = Family(
    name="stable-diffusion-3",
    part="transformer",
    networks=("SD3Transformer2DModel",),
    pipelines=("StableDiffusion3Pipeline",),
    parts={
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModelWithProjection",),
        "tokenizer": ("CLIPTokenizer",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer_2": ("CLIPTokenizer",),
        "text_encoder_3": ("T5EncoderModel",),
        "tokenizer_3": ("T5Tokenizer",),
    },
    optional=("text_encoder_3", "tokenizer_3"),
    flow="own",
    tokens=_tokens,
    call=_call,
    embedders=of_time_and_text,
    time_features=time_of_time_and_text,
    check_config=_check_config,
    conditions=empty_prompt,
    check_cond=_check_cond,
    condition=_condition,
)
