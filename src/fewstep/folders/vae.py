"""The autoencoder of a model folder, and the images that it makes of a model's states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.errors import FolderError
from fewstep.files.hub import local
from fewstep.files.parts import is_count, is_number, read_json, vae_factor
from fewstep.files.weights import load_part
from fewstep.folders.base import base_of
from fewstep.models.card import Card
from fewstep.models.model import model_of
from fewstep.models.vae import decode_latents

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

# Those that can be loaded; the first by default.
AUTOENCODERS = ("AutoencoderKL", "AutoencoderDC", "AutoencoderKLQwenImage")


def to_images(model: Denoiser, states: Tensor) -> Tensor:
    """Return the images (B, C, H, W) of a model's clean states (B, *D).

    States of a model of latents go through its own autoencoder and are cut to [-1, 1]; others are
    images as they are.
    """
    return image_decoder(model, str(states.device))(states)


def image_decoder(model: Denoiser, device: str) -> Callable[[Tensor], Tensor]:
    """Return the function that `to_images` is, with the autoencoder of the model loaded."""
    source = model_of(model).source
    if source is None:
        return lambda states: states
    vae = load_vae(source, device)
    return lambda states: decode_latents(vae, states.float()).clamp(-1, 1)


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
    import diffusers

    path = base_of(local(folder)) / "vae"
    name = read_json(path / "config.json").get("_class_name")
    vae: AutoencoderKL = load_part(
        getattr(diffusers, name if name in AUTOENCODERS else AUTOENCODERS[0]), path
    )
    _check_scale(vae.config, path / "config.json")
    return vae.to(device).eval()


def _check_scale(config: Any, path: Path) -> None:
    """Raise FolderError unless latents can be scaled to the network's and back."""
    scale = config.get("scaling_factor", 1.0)
    if not is_number(scale) or scale == 0:
        raise FolderError(
            f"{path}: scaling_factor must be a finite number other than 0, got {scale!r}. Write "
            "the one that the model was trained with."
        )
    if not is_number(config.get("shift_factor") or 0.0):
        raise FolderError(
            f"{path}: shift_factor must be null or a finite number, got "
            f"{config.get('shift_factor')!r}. Write the one that the model was trained with."
        )
    channels = config.get("latent_channels", config.get("z_dim"))
    for key in ("latents_mean", "latents_std"):
        given = config.get(key)
        if given is not None and not (
            isinstance(given, list | tuple)
            and len(given) == channels
            and all(is_number(x) and (x > 0 or key != "latents_std") for x in given)
        ):
            raise FolderError(
                f"{path}: {key} must be null or {channels} finite numbers, got "
                f"{given!r}. Write those that the model was trained with."
            )
