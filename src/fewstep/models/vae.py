"""Latents and images: what an autoencoder makes of them, with its scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.core.finite import check_finite

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

OVERFLOW = (
    "Some autoencoders, such as SDXL's first one, overflow in float16: load it in float32, or use "
    "one that was mended for float16."
)


def _mean_and_scale(vae: AutoencoderKL, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return (mean, scale): the autoencoder's own latents are z * scale + mean."""
    config = vae.config
    scale = torch.tensor(1.0 / config.scaling_factor, dtype=like.dtype, device=like.device)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return torch.full_like(scale, config.get("shift_factor") or 0.0), scale
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
        parts = [(_latents(vae.encode(part)) - mean) / scale for part in x.split(batch_size)]
    return check_finite(torch.cat(parts), "the latents that the autoencoder encoded", OVERFLOW)


def _latents(encoded: Any) -> Tensor:
    """Return the mode of a posterior, or the latents of an autoencoder that is not variational."""
    latents: Tensor = (
        encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    )
    return latents
