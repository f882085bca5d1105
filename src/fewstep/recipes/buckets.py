"""The sizes of buckets against what autoencoder and network can take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.data import Buckets
from fewstep.errors import RecipeError
from fewstep.files.hub import local
from fewstep.files.parts import read_json, vae_factor
from fewstep.folders import card_in, is_pipeline
from fewstep.models import Card
from fewstep.models.families import family_named
from fewstep.recipes.config import Recipe
from fewstep.recipes.teachers import condition_of


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
    """Raise RecipeError where a bucket does not fit the network that the recipe's teacher gets.

    As `fresh_teacher` has it: that of a stock pipeline in latents.folder, or a new one.
    """
    latents, factor = recipe.latents, 1
    if latents is not None and latents.folder is not None:
        folder = local(latents.folder)
        if is_pipeline(folder):
            card = card_in(folder)
            if card.is_teacher and latents.cond == condition_of(card):
                check_buckets(images, folder, card, latents=True)
                return
        factor = vae_factor(folder)
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
    """Return the factor by which a U-Net shrinks the side of an image to its lowest level."""
    return int(2 ** (len(levels) - 1))


def _patch(config: Mapping[str, Any], card: Card) -> int:
    """Return the multiple that the sides of a network's input must be."""
    if "block_out_channels" in config:  # a U-Net
        return _halvings(config["block_out_channels"])
    if config.get("in_channels", card.shape[0]) != card.shape[0]:
        return 2  # latents are packed
    return int(config.get("patch_size") or 1)
