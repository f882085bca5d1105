"""The sizes of buckets against what autoencoder and network can take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.data import Buckets
from fewstep.errors import RecipeError
from fewstep.files.parts import read_json, vae_factor
from fewstep.models import Card
from fewstep.models.families import family_named
from fewstep.recipes.config import Recipe


def check_buckets(images: Buckets, folder: Path, card: Card, *, latents: bool) -> None:
    """Raise RecipeError where a bucket that has images does not fit a model folder.

    Sides must be whole numbers of the patches that the network takes, and within its positions.
    """
    path = folder / family_named(card.family, "the card").part / "config.json"
    config = read_json(path) if path.is_file() else {}
    step = _patch(config, card) * (vae_factor(folder) if latents else 1)
    positions = config.get("pos_embed_max_size")
    _check(images, step, None if positions is None else step * positions, str(folder))


def check_fresh_buckets(images: Buckets, recipe: Recipe) -> None:
    """Raise RecipeError where a bucket does not fit the network that the recipe makes."""
    folder = None if recipe.latents is None else recipe.latents.folder
    factor = 1 if folder is None else vae_factor(Path(folder))
    _check(images, factor * _halvings(recipe.network.channels), None, "this network")


def _check(images: Buckets, step: int, most: int | None, taker: str) -> None:
    for part in images.parts:
        height, width = part.shape[1:]
        if height % step or width % step or (most is not None and max(height, width) > most):
            raise RecipeError(
                f"the sides of data.buckets must be multiples of {step} pixels"
                f"{'' if most is None else f' up to {most}'} for {taker}, got "
                f"[{height}, {width}]. Choose other buckets."
            )


def _halvings(levels: Sequence[int]) -> int:
    """Return of how many pixels one is made in the lowest level of a U-Net, along a side."""
    return int(2 ** (len(levels) - 1))


def _patch(config: Mapping[str, Any], card: Card) -> int:
    """Return of how many states along a side a network's smallest piece is."""
    if "block_out_channels" in config:  # a U-Net
        return _halvings(config["block_out_channels"])
    if config.get("in_channels", card.shape[0]) != card.shape[0]:
        return 2  # latents are packed
    return int(config.get("patch_size") or 1)
