"""Qwen-Image: a transformer of 2x2 patches with Qwen2.5-VL as text encoder.

cond: a dict of text (B, L, D), filled up with zeros, and mask (B, L), 1 where a token is the
prompt's; L is 512 unless `max_sequence_length` is given. The stock pipeline fills up to the longest
prompt only; masked tokens change nothing.

Guidance is real, `true_cfg_scale` = 1 + w with a negative prompt, " " where there is none. The
stock pipeline then gives each patch of the prediction the length that it has without guidance, and
so does the teacher: its guided v is no plain mixture of the two passes. The stock scheduler starts
the last step at sigma 0.02 (`shift_terminal`), whatever the number of steps; the clock does not.
There is no input for w: networks with `guidance_embeds` are refused, since their own code in
diffusers cannot call them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fewstep.core.angle import expand, flow_from_phi
from fewstep.core.cond import Cond
from fewstep.errors import FolderError
from fewstep.models.card import Card
from fewstep.models.families.family import Family
from fewstep.models.families.packed import check_features, pack, packed_shape, packed_tokens, unpack
from fewstep.models.families.text import (
    TEXT_AND_MASK,
    check_text_and_mask,
    of_time_and_text,
    parts_of,
    time_of_time_and_text,
)

PLAIN = ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")


def _call(network: Any, z: Tensor, timestep: Tensor, cond: Cond, w: Tensor | None) -> Tensor:
    parts = parts_of(cond, TEXT_AND_MASK)
    count, _, height, width = z.shape
    out = network(
        pack(z),
        timestep=timestep / 1000,
        encoder_hidden_states=parts["text"].to(z.dtype),
        encoder_hidden_states_mask=parts["mask"].bool(),
        img_shapes=[[(1, height // 2, width // 2)]] * count,
        return_dict=False,
    )[0]
    return unpack(out, z.shape)


def _rescale(v: Tensor, v_cond: Tensor, z: Tensor, phi: Tensor) -> Tensor:
    """Return v with each patch of the prediction as long as without guidance.

    The network predicts u = (v - (1 - 2 s) z) / k, whose factor 1 / k is the same for both.
    """
    still = (1.0 - 2.0 * expand(flow_from_phi(phi), z)) * z
    guided, plain = pack(v - still), pack(v_cond - still)
    ratio = plain.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
    return still + unpack(guided * ratio, z.shape)


def _time_features(network: Any, timesteps: Tensor) -> Tensor:
    return time_of_time_and_text(network, timesteps / 1000)  # its features multiply by 1000


def _check_cond(network: Any, card: Card, cond: Cond) -> None:
    check_text_and_mask(cond, network.config.joint_attention_dim)


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    for key in PLAIN:
        if config.get(key):
            raise FolderError(
                f"{path}: {key}: {config[key]!r}; this network needs more than text, latents and "
                "timestep, which fewstep does not give it. Use the text-to-image model."
            )
    patch = config.get("patch_size", 2)
    check_features(config, path, patch * patch * (config.get("out_channels") or 16))


def _condition(made: tuple[Any, ...], folder: Path) -> Cond:
    text, mask = made
    mask = torch.ones_like(text[..., 0]) if mask is None else mask.to(text.dtype)
    return {"text": text, "mask": mask}


def _fill(cond: Cond, length: int) -> Cond:
    parts = parts_of(cond, TEXT_AND_MASK)
    more = length - parts["mask"].shape[1]
    return {"text": pad(parts["text"], (0, 0, 0, more)), "mask": pad(parts["mask"], (0, more))}


def _conditions(index: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    return {"null_prompt": " "}


QWEN_IMAGE = Family(
    name="qwen-image",
    part="transformer",
    networks=("QwenImageTransformer2DModel",),
    pipelines=("QwenImagePipeline",),
    flow="spaced",
    tokens=packed_tokens,
    shape=packed_shape,
    parts={
        "vae": ("AutoencoderKLQwenImage",),
        "text_encoder": ("Qwen2_5_VLForConditionalGeneration",),
        "tokenizer": ("Qwen2Tokenizer",),
    },
    call=_call,
    true_cfg=True,
    unused=True,  # the last block still computes text tokens
    rescale=_rescale,
    embedders=of_time_and_text,
    time_features=_time_features,
    check_config=_check_config,
    conditions=_conditions,
    check_cond=_check_cond,
    condition=_condition,
    fill=_fill,
)
