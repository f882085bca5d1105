"""PixArt: text-to-image transformers of latents with a T5 encoder; a learned sigma is ignored.

cond: a dict of text (B, L, D) and mask (B, L), 1 where a token is no padding. Networks with the
picture's resolution and aspect ratio as inputs (PixArt-Alpha at 1024 pixels) are not covered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
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

NOT_TOLD: dict[str, None] = {"resolution": None, "aspect_ratio": None}


def _call(network: Any, z: Tensor, timestep: Tensor, cond: Cond, w: Tensor | None) -> Tensor:
    parts = parts_of(cond, TEXT_AND_MASK)
    out: Tensor = network(
        z,
        encoder_hidden_states=parts["text"].to(z.dtype),
        encoder_attention_mask=parts["mask"],
        timestep=timestep,
        added_cond_kwargs=NOT_TOLD,
        return_dict=False,
    )[0]
    return out[:, : z.shape[1]]


def _embedders(network: Any) -> list[Any]:
    return [network.adaln_single.emb.timestep_embedder]


def _check_cond(network: Any, card: Card, cond: Cond) -> None:
    config = network.config
    check_text_and_mask(cond, config.caption_channels or config.cross_attention_dim)


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    check_output_channels(config, path)
    conditions = config.get("use_additional_conditions")
    if conditions or (conditions is None and config.get("sample_size") == 128):
        raise FolderError(
            f"{path}: use_additional_conditions: {conditions!r} at sample_size "
            f"{config.get('sample_size')}; this network takes resolution and aspect ratio of the "
            "picture, which fewstep does not give it. Use a model of 512 pixels, or PixArt-Sigma."
        )


PIXART_SIGMA = Family(
    name="pixart-sigma",
    part="transformer",
    # The second in the folders that were published.
    networks=("PixArtTransformer2DModel", "Transformer2DModel"),
    pipelines=("PixArtSigmaPipeline",),
    parts={
        "vae": ("AutoencoderKL",),
        "text_encoder": ("T5EncoderModel",),
        "tokenizer": ("T5Tokenizer",),
    },
    call=_call,
    embedders=_embedders,
    check_config=_check_config,
    conditions=empty_prompt,
    check_cond=_check_cond,
    condition=text_and_mask,
)
PIXART_ALPHA = replace(PIXART_SIGMA, name="pixart-alpha", pipelines=("PixArtAlphaPipeline",))
