"""Latents and images: what an autoencoder makes of them, with its scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.core.finite import check_finite

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

AT_ONCE = 8 * 512 * 512  # pixels that go through an autoencoder at a time, on a GPU
SIDE = 8  # pixels of a side of a latent, of most autoencoders
OVERFLOW = (
    "Some autoencoders, such as SDXL's first one, overflow in float16: load it in float32, or use "
    "one that was mended for float16."
)


def mean_and_scale(vae: AutoencoderKL, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return (mean, scale): the autoencoder's own latents are z * scale + mean."""
    config = vae.config
    factor = config.get("scaling_factor", 1.0)
    scale = torch.tensor(1.0 / factor, dtype=like.dtype, device=like.device)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return torch.full_like(scale, config.get("shift_factor") or 0.0), scale
    columns = (torch.tensor(t, dtype=like.dtype, device=like.device) for t in (mean, std))
    m, s = (c.reshape(1, -1, 1, 1) for c in columns)
    return m, s * scale


def _has_frames(vae: Any) -> bool:
    """Whether an autoencoder is one of videos (B, C, F, H, W), an image being one frame."""
    return hasattr(vae, "temperal_downsample")


def decoded(vae: Any, z: Tensor) -> Tensor:
    """Return the images (B, 3, H, W) of clean latents z (B, C, h, w) in one pass, unchecked."""
    mean, scale = mean_and_scale(vae, z)
    latents = z * scale + mean
    images: Tensor = vae.decode(
        latents[:, :, None] if _has_frames(vae) else latents, return_dict=False
    )[0]
    return images[:, :, 0] if _has_frames(vae) else images


def _encode(vae: Any, x: Tensor) -> Tensor:
    """Return the mode of a posterior, or the latents of an autoencoder that is not variational."""
    encoded = vae.encode(x[:, :, None] if _has_frames(vae) else x)
    latents: Tensor = (
        encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    )
    return latents[:, :, 0] if _has_frames(vae) else latents


def _parts(vae: AutoencoderKL, t: Tensor, pixels: int, asked: int | None) -> tuple[Tensor, ...]:
    """Return a batch of images or latents in parts of at least 8, on a GPU more if they are small.

    pixels: of one image. asked: the size of a part, if the caller has one.
    """
    fits = 8 if vae.device.type == "cpu" else min(256, max(8, AT_ONCE // pixels))
    parts: tuple[Tensor, ...] = t.split(asked or fits)
    return parts


def decode_latents(vae: AutoencoderKL, z: Tensor, batch_size: int | None = None) -> Tensor:
    """Return images (B, 3, H, W), about [-1, 1], of the clean latents z (B, C, h, w)."""
    check_finite(z, "the latents to decode", "The network that made them gave them: check it.")
    with torch.no_grad():
        split = _parts(vae, z, SIDE * SIDE * z[0, 0].numel(), batch_size)
        parts = [decoded(vae, part) for part in split]
    return check_finite(torch.cat(parts), "the images that the autoencoder decoded", OVERFLOW)


def encode_images(vae: AutoencoderKL, x: Tensor, batch_size: int | None = None) -> Tensor:
    """Return the latents (B, C, h, w) of images x (B, 3, H, W) in [-1, 1]: the posterior's mode."""
    mean, scale = mean_and_scale(vae, x)
    with torch.no_grad():
        split = _parts(vae, x, x[0, 0].numel(), batch_size)
        parts = [(_encode(vae, part) - mean) / scale for part in split]
    return check_finite(torch.cat(parts), "the latents that the autoencoder encoded", OVERFLOW)
