"""Flux: transformers of 2x2 patches with a T5 encoder and the pooled text of CLIP.

cond: a dict of text (B, L, D) and pooled (B, P).

Two families, by `guidance_embeds` in the network's config:

- "flux" (false, as schnell): real guidance by two passes, `true_cfg_scale` = 1 + w with a negative
  prompt in the stock pipeline. There is no input for w; a student for one w is folded.
- "flux-guided" (true, as dev): guidance was distilled into the network, which takes a guidance
  scale g. It is read as a model of guidance distillation: one pass, w is live, and step
  distillation keeps it so. g = 1 + w: Flux's g = 1 is no guidance, as in `v_uncond + g (v_cond -
  v_uncond)`. The pipeline feeds g as it is, and the network multiplies by 1000. With one w fixed
  in its weights the network is of "flux".
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.distill.plan import TEACHER, Stage
from fewstep.errors import FolderError, ShapeError
from fewstep.models.card import Card
from fewstep.models.families.family import Family
from fewstep.models.families.packed import (
    check_features,
    pack,
    packed_shape,
    packed_tokens,
    positions,
    unpack,
)
from fewstep.models.families.text import (
    check_text,
    empty_prompt,
    of_time_and_text,
    parts_of,
    time_of_time_and_text,
)

KEYS = ("text", "pooled")
EMBED = "time_text_embed."
GUIDANCE = f"{EMBED}guidance_embedder."  # of the names of its weights
DISTILLED = Stage(parent=TEACHER)
# g from 1 to 10. The range of training was not published; 3.5 is the pipeline's default, and the
# services that offer "dev" take up to 10.
GUIDED_RANGE = (0.0, 9.0)


def _call(network: Any, z: Tensor, timestep: Tensor, cond: Cond, w: Tensor | None) -> Tensor:
    parts = {key: tensor.to(z.dtype) for key, tensor in parts_of(cond, KEYS).items()}
    out = network(
        pack(z),
        timestep=timestep / 1000,
        guidance=None if w is None else 1.0 + w,
        pooled_projections=parts["pooled"],
        encoder_hidden_states=parts["text"],
        txt_ids=z.new_zeros(parts["text"].shape[1], 3),
        img_ids=positions(z),
        return_dict=False,
    )[0]
    return unpack(out, z.shape)


def _fix(network: Any, w: float) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and weights without the guidance embedder, whose output for w is a constant.

    The embeddings of timestep, guidance and text are added up, so that the constant is a bias of
    the timestep embedder's last layer.
    """
    embed, bias = network.time_text_embed, f"{EMBED}timestep_embedder.linear_2.bias"
    scale = 1000.0 * (1.0 + torch.tensor([w], device=network.device))
    with torch.no_grad():
        features = embed.time_proj(scale).double()
        constant = copy.deepcopy(embed.guidance_embedder).double()(features)[0]
        weights = {k: t for k, t in network.state_dict().items() if not k.startswith(GUIDANCE)}
        weights[bias] = weights[bias] + constant.to(weights[bias].dtype)
    return {"guidance_embeds": False}, weights


def _check_cond(network: Any, card: Card, cond: Cond) -> None:
    parts, config = parts_of(cond, KEYS), network.config
    check_text(parts["text"], config.joint_attention_dim)
    pooled = parts["pooled"]
    if pooled.ndim != 2 or pooled.shape[-1] != config.pooled_projection_dim:
        raise ShapeError(
            f"pooled text of shape {tuple(pooled.shape)}; it must be (B, "
            f"{config.pooled_projection_dim}). Make it with "
            "fewstep.folders.encode_prompts(folder, prompts)."
        )


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Raise FolderError unless a network of Flux's kind takes nothing but latents."""
    if config.get("patch_size", 1) != 1:
        raise FolderError(
            f"{path}: patch_size must be 1, got {config['patch_size']!r}: this network is packed "
            "in another way than stock pipelines pack. Give another model."
        )
    check_features(config, path, config.get("out_channels") or config["in_channels"])


def _condition(made: tuple[Any, ...], folder: Path) -> Cond:
    text, pooled, _ = made
    return {"text": text, "pooled": pooled}


def _conditions_guided(index: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    return {"null_prompt": "", "stage": DISTILLED, "w_range": GUIDED_RANGE}


def _has_slot(config: Mapping[str, Any]) -> bool:
    return bool(config.get("guidance_embeds"))


def _has_no_slot(config: Mapping[str, Any]) -> bool:
    return not _has_slot(config)


FLUX = Family(
    name="flux",
    part="transformer",
    networks=("FluxTransformer2DModel",),
    pipelines=("FluxPipeline",),
    owns=_has_no_slot,
    flow="spaced",
    tokens=packed_tokens,
    shape=packed_shape,
    parts={
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": ("CLIPTokenizer",),
        "text_encoder_2": ("T5EncoderModel",),
        "tokenizer_2": ("T5Tokenizer",),
    },
    call=_call,
    true_cfg=True,
    embedders=of_time_and_text,
    time_features=time_of_time_and_text,
    check_config=check_config,
    conditions=empty_prompt,
    check_cond=_check_cond,
    condition=_condition,
)
FLUX_GUIDED = replace(
    FLUX,
    name="flux-guided",
    owns=_has_slot,
    slot="value",
    fix=_fix,
    fixed=FLUX.name,
    true_cfg=False,
    conditions=_conditions_guided,
)
