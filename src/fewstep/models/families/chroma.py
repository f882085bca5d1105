"""Chroma: Flux's transformer without CLIP, with a mask of the text; always guided by two passes.

cond: a dict of text (B, L, D) and mask (B, L), 1 for the tokens of the prompt and the first of its
padding. The mask is a float, as the stock pipeline has it: attention adds it to its scores.

There is no timestep embedder. An approximator makes all modulations of the blocks from a token per
modulation: features of the timestep, of a guidance weight that is always 0, and of the token's
number. The input for w is added to these tokens, the same to each. So one w is a constant before
the approximator's first layer, `in_proj`, and folds into its bias exactly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.models.card import Card
from fewstep.models.families.family import Family
from fewstep.models.families.flux import check_config
from fewstep.models.families.packed import pack, packed_shape, packed_tokens, positions, unpack
from fewstep.models.families.text import (
    TEXT_AND_MASK,
    check_text_and_mask,
    empty_prompt,
    parts_of,
)


def _call(network: Any, z: Tensor, timestep: Tensor, cond: Cond, w: Tensor | None) -> Tensor:
    parts = {key: tensor.to(z.dtype) for key, tensor in parts_of(cond, TEXT_AND_MASK).items()}
    tokens, mask = pack(z), parts["mask"]
    out = network(
        tokens,
        timestep=timestep / 1000,
        encoder_hidden_states=parts["text"],
        attention_mask=torch.cat([mask, mask.new_ones(tokens.shape[:2])], dim=1),
        txt_ids=z.new_zeros(mask.shape[1], 3),
        img_ids=positions(z),
        return_dict=False,
    )[0]
    return unpack(out, z.shape)


def _embedders(network: Any) -> list[Any]:
    return [network.distilled_guidance_layer]


def _time_features(network: Any, timesteps: Tensor) -> Tensor:
    """Return the features of the guidance weight 0, (1, D): all tokens have them, at any time."""
    tokens = network.time_text_embed(timesteps[:1])[0]
    each = tokens.shape[-1] // 4  # features of time, of guidance, and twice as many of the token
    shared = torch.zeros_like(tokens[:1])
    shared[:, each : 2 * each] = tokens[:1, each : 2 * each]
    return shared


def _prepare(network: Any) -> None:
    # Recomputed, its single blocks would be called without the mask.
    network._supports_gradient_checkpointing = False


def _check_cond(network: Any, card: Card, cond: Cond) -> None:
    check_text_and_mask(cond, network.config.joint_attention_dim)


def _condition(made: tuple[Any, ...], folder: Path) -> Cond:
    text, _, mask, *_ = made
    return {"text": text, "mask": mask}


CHROMA = Family(
    name="chroma",
    part="transformer",
    networks=("ChromaTransformer2DModel",),
    pipelines=("ChromaPipeline",),
    flow="spaced",
    tokens=packed_tokens,
    shape=packed_shape,
    parts={
        "vae": ("AutoencoderKL",),
        "text_encoder": ("T5EncoderModel",),
        "tokenizer": ("T5Tokenizer",),
    },
    call=_call,
    embedders=_embedders,
    time_features=_time_features,
    prepare=_prepare,
    check_config=check_config,
    conditions=empty_prompt,
    check_cond=_check_cond,
    condition=_condition,
)
