"""What families of text-to-image networks have in common: embeddings of prompts, and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.errors import FolderError, ShapeError

TEXT_AND_MASK = ("text", "mask")  # parts of a condition


def parts_of(cond: Cond, keys: Sequence[str]) -> dict[str, Tensor]:
    """Return a condition that is a dict of these tensors. Raises ShapeError for another one."""
    if not isinstance(cond, dict) or set(cond) != set(keys):
        found = sorted(cond) if isinstance(cond, dict) else "a tensor"
        raise ShapeError(
            f"this model's condition is a dict of {', '.join(keys)}, not {found}. Make it with "
            "fewstep.folders.encode_prompts(folder, prompts)."
        )
    return cond


def of_time_and_text(network: Any) -> list[Any]:
    """Return the timestep embedder of a network that adds up the embeddings of time and text."""
    return [network.time_text_embed.timestep_embedder]


def time_of_unet(network: Any, timesteps: Tensor) -> Tensor:
    """Return the features (N, D) of timesteps (N,) that a U-Net's timestep embedder is given."""
    out: Tensor = network.time_proj(timesteps)
    return out


def time_of_time_and_text(network: Any, timesteps: Tensor) -> Tensor:
    """Return the features (N, D) of timesteps (N,) where the embeddings of time and text add up."""
    out: Tensor = network.time_text_embed.time_proj(timesteps)
    return out


def empty_prompt(index: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the card says of conditions: the unconditional pass is given an empty prompt."""
    return {"null_prompt": ""}


def check_text(text: Tensor, dim: int) -> None:
    """Raise ShapeError unless the text embeddings are (B, L, dim)."""
    if text.ndim != 3 or text.shape[-1] != dim:
        raise ShapeError(
            f"text embeddings of shape {tuple(text.shape)}; this model's are (B, L, {dim}). "
            "Make them with fewstep.folders.encode_prompts(folder, prompts)."
        )


def check_unet(
    config: Mapping[str, Any], path: Path, *, name: str, wanted: Mapping[str, Any]
) -> None:
    """Raise FolderError unless a U-Net has the wanted settings, so that `call` gives it all."""
    everywhere = {"class_embed_type": None, "encoder_hid_dim_type": None, "num_class_embeds": None}
    for key, right in {**everywhere, **wanted}.items():
        if config.get(key) != right:
            raise FolderError(
                f"{path}: {key}: {config.get(key)!r}; a {name} network has {right!r}. "
                "fewstep does not know what to give this one."
            )
    channels = config.get("in_channels"), config.get("out_channels")
    if channels[0] != channels[1]:
        raise FolderError(
            f"{path}: in_channels: {channels[0]} and out_channels: {channels[1]}; they must be "
            "as many. A network made for inpainting or pix2pix has more inputs; give the "
            "text-to-image model."
        )


def text_and_mask(made: tuple[Any, ...], folder: Path) -> Cond:
    """Return the condition of an `encode_prompt` that returns text and its mask first."""
    text, mask, *_ = made
    return {"text": text, "mask": mask}


def check_text_and_mask(cond: Cond, dim: int) -> None:
    """Raise ShapeError unless a condition is text (B, L, dim) and its mask (B, L)."""
    parts = parts_of(cond, TEXT_AND_MASK)
    text, mask = parts["text"], parts["mask"]
    check_text(text, dim)
    if mask.shape != text.shape[:2]:
        raise ShapeError(
            f"a mask of shape {tuple(mask.shape)} for text of shape {tuple(text.shape)}; it must "
            "be (B, L)."
        )
