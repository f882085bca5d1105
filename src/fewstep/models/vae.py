"""Latents and images: a pipeline folder's own autoencoder, with its scale."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.core.denoiser import Guided
from fewstep.models.card import Card
from fewstep.models.hub import local
from fewstep.models.parts import read_json, reading
from fewstep.models.pipeline_folder import base_of
from fewstep.models.unet_class import UNetModel, network_of

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


def to_images(model: UNetModel | Guided, states: Tensor) -> Tensor:
    """Return the images (B, C, H, W) of a model's clean states (B, *D).

    States of a model of latents go through its own autoencoder and are cut to [-1, 1]; others are
    images as they are.
    """
    source = network_of(model).source
    if source is None:
        return states
    return decode_latents(load_vae(source, str(states.device)), states.float()).clamp(-1, 1)


def image_shape(folder: Path, card: Card) -> tuple[int, ...]:
    """Return the shape (C, H, W) of a model folder's images."""
    folder = base_of(folder)
    if not (folder / "vae").is_dir():
        return card.shape
    config = read_json(folder / "vae" / "config.json")
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    return (int(config["in_channels"]), *(factor * n for n in card.shape[1:]))


def load_vae(folder: Path | str, device: str = "cpu") -> AutoencoderKL:
    """Return the autoencoder of a pipeline folder, of an adapter's base or of a hub id, in float32.

    Raises FolderError.
    """
    from diffusers import AutoencoderKL

    path = base_of(local(folder)) / "vae"
    with reading(path):
        vae: AutoencoderKL = AutoencoderKL.from_pretrained(
            path, use_safetensors=True, local_files_only=True, torch_dtype=torch.float32
        )
    return vae.to(device).eval()


def _mean_and_scale(vae: AutoencoderKL, like: Tensor) -> tuple[Tensor, Tensor]:
    config = vae.config
    scale = torch.tensor(1.0 / config.scaling_factor, dtype=like.dtype, device=like.device)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return torch.zeros_like(scale), scale
    columns = (torch.tensor(t, dtype=like.dtype, device=like.device) for t in (mean, std))
    m, s = (c.reshape(1, -1, 1, 1) for c in columns)
    return m, s * scale


def decode_latents(vae: AutoencoderKL, z: Tensor, batch_size: int = 8) -> Tensor:
    """Return images (B, 3, H, W), about [-1, 1], of the clean latents z (B, C, h, w)."""
    mean, scale = _mean_and_scale(vae, z)
    with torch.no_grad():
        parts = [
            vae.decode(part * scale + mean, return_dict=False)[0] for part in z.split(batch_size)
        ]
    return torch.cat(parts)


def encode_images(vae: AutoencoderKL, x: Tensor, batch_size: int = 8) -> Tensor:
    """Return the latents (B, C, h, w) of images x (B, 3, H, W) in [-1, 1]: the posterior's mode."""
    mean, scale = _mean_and_scale(vae, x)
    with torch.no_grad():
        parts = [
            (vae.encode(part).latent_dist.mode() - mean) / scale for part in x.split(batch_size)
        ]
    return torch.cat(parts)
