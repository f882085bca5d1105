"""Sana: a flow-matching transformer of the latents of a deep-compression autoencoder, with Gemma 2.

cond: a dict of text (B, L, D) and mask (B, L), 1 where a token is no padding. Prompts are encoded
behind the instruction that the stock pipeline writes before them by default; the unconditional
pass has none. The guidance scale of the stock pipeline is 1 + w.

The network has no slot for w. Its class has one, `guidance_embeds`, which Sana Sprint uses. But
`SanaPipeline` does not feed it, and `SanaSprintPipeline` steps by `SCMScheduler`: each step
predicts the clean image and adds new noise, so a student of a number of steps would draw other
images there. So w is an added input (decision 0028). A Sprint is refused as a teacher: its network
predicts the end of a trajectory, and not the velocity along it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.errors import FolderError
from fewstep.models.card import Card
from fewstep.models.families.dit import check_output_channels
from fewstep.models.families.family import Family
from fewstep.models.families.text import (
    TEXT_AND_MASK,
    check_text_and_mask,
    empty_prompt,
    parts_of,
    text_and_mask,
)


def _call(network: Any, z: Tensor, timestep: Tensor, cond: Cond, w: Tensor | None) -> Tensor:
    parts = parts_of(cond, TEXT_AND_MASK)
    out: Tensor = network(
        z,
        encoder_hidden_states=parts["text"].to(z.dtype),
        encoder_attention_mask=parts["mask"],
        timestep=timestep * network.config.timestep_scale,
        return_dict=False,
    )[0]
    return out[:, : z.shape[1]]


def _embedders(network: Any) -> list[Any]:
    return [network.time_embed.emb.timestep_embedder]


def _time_features(network: Any, timesteps: Tensor) -> Tensor:
    out: Tensor = network.time_embed.emb.time_proj(timesteps * network.config.timestep_scale)
    return out


def _check_cond(network: Any, card: Card, cond: Cond) -> None:
    check_text_and_mask(cond, network.config.caption_channels)


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    check_output_channels(config, path)
    if config.get("guidance_embeds"):
        raise FolderError(
            f"{path}: guidance_embeds must be false in a folder of SanaPipeline, which does not "
            f"feed it, got {config['guidance_embeds']!r}. Give a Sana that is no Sprint."
        )


SPRINT = (
    "Sana Sprint is a consistency model: every step of it predicts the clean image and adds new "
    "noise, and there is no velocity to distil. Give the folder of a SanaPipeline."
)
SANA = Family(
    name="sana",
    part="transformer",
    networks=("SanaTransformer2DModel",),
    pipelines=("SanaPipeline",),
    refused={"SanaSprintPipeline": SPRINT},
    parts={
        "vae": ("AutoencoderDC",),
        "text_encoder": ("Gemma2Model",),
        "tokenizer": ("GemmaTokenizer",),
    },
    flow="own",
    call=_call,
    embedders=_embedders,
    time_features=_time_features,
    check_config=_check_config,
    conditions=empty_prompt,
    check_cond=_check_cond,
    condition=text_and_mask,
    prompt_defaults=("complex_human_instruction",),
)
