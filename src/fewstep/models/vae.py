"""Latents and images: a pipeline folder's own autoencoder, with its scale."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Guided
from fewstep.core.finite import check_finite
from fewstep.errors import FolderError
from fewstep.models.card import Card
from fewstep.models.hub import local
from fewstep.models.parts import is_count, is_number, read_json, vae_factor
from fewstep.models.pipeline_folder import base_of
from fewstep.models.unet_class import UNetModel, network_of
from fewstep.models.weights import load_part

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

OVERFLOW = (
    "Some autoencoders, such as SDXL's first one, overflow in float16: load it in float32, or use "
    "one that was mended for float16."
)


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
    path = folder / "vae" / "config.json"
    channels, factor = read_json(path).get("in_channels", 3), vae_factor(folder)
    if not is_count(channels):
        raise FolderError(f"{path}: in_channels must be a whole number above 0, got {channels!r}.")
    return (channels, *(factor * n for n in card.shape[1:]))


def load_vae(folder: Path | str, device: str = "cpu") -> AutoencoderKL:
    """Return the autoencoder of a pipeline folder, of an adapter's base or of a hub id, in float32.

    Raises FolderError.
    """
    from diffusers import AutoencoderKL

    path = base_of(local(folder)) / "vae"
    vae: AutoencoderKL = load_part(AutoencoderKL, path)
    _check_scale(vae.config, path / "config.json")
    return vae.to(device).eval()


def _check_scale(config: Any, path: Path) -> None:
    """Raise FolderError unless latents can be scaled to the network's and back."""
    scale = config.scaling_factor
    if not is_number(scale) or scale == 0:
        raise FolderError(
            f"{path}: scaling_factor must be a finite number other than 0, got {scale!r}. Write "
            "the one that the model was trained with."
        )
    for key in ("latents_mean", "latents_std"):
        given = config.get(key)
        if given is not None and not (
            isinstance(given, list | tuple)
            and len(given) == config.latent_channels
            and all(is_number(x) and (x > 0 or key != "latents_std") for x in given)
        ):
            raise FolderError(
                f"{path}: {key} must be null or {config.latent_channels} finite numbers, got "
                f"{given!r}. Write those that the model was trained with."
            )


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
    check_finite(z, "the latents to decode", "The network that made them gave them: check it.")
    mean, scale = _mean_and_scale(vae, z)
    with torch.no_grad():
        parts = [
            vae.decode(part * scale + mean, return_dict=False)[0] for part in z.split(batch_size)
        ]
    return check_finite(torch.cat(parts), "the images that the autoencoder decoded", OVERFLOW)


def encode_images(vae: AutoencoderKL, x: Tensor, batch_size: int = 8) -> Tensor:
    """Return the latents (B, C, h, w) of images x (B, 3, H, W) in [-1, 1]: the posterior's mode."""
    mean, scale = _mean_and_scale(vae, x)
    with torch.no_grad():
        parts = [
            (vae.encode(part).latent_dist.mode() - mean) / scale for part in x.split(batch_size)
        ]
    return check_finite(torch.cat(parts), "the latents that the autoencoder encoded", OVERFLOW)
