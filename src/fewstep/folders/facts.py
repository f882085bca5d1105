"""A card's facts against the folder that it lies in: hash, shape, classes, clock and w input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fewstep.errors import FolderError, GridError, ShapeError
from fewstep.models.card import CARD, Card
from fewstep.models.clocks.clock import Clock
from fewstep.models.families import Family

MARK = "_fewstep_stage"  # in a network's config.json; diffusers keeps it when it saves a model


def with_checked_hash(card: Card, folder: Path, found: str) -> Card:
    """Return the card with the hash of its weights. Raises FolderError where it names others.

    found: the hash of the weights in the folder. A card without a hash takes it over.
    """
    if card.weights_sha256 and card.weights_sha256 != found:
        raise FolderError(
            f"{folder}: the weights must be those of {CARD}, of sha256 "
            f"{card.weights_sha256[:16]}, got {found[:16]}. Bring the weights back that it was "
            f'saved with; if you changed them on purpose, set "weights_sha256": "" in {CARD}.'
        )
    return card.model_copy(update={"weights_sha256": found})


def check_network_facts(
    card: Card, family: Family, clock: Clock, config: dict[str, Any], card_path: Path, path: Path
) -> None:
    """Raise FolderError where shape, classes or steps of a card are not those of the network.

    config: of the network, read from `path`.
    """
    shape = family.shape(config, path)
    if card.shape != shape:
        raise FolderError(
            f"{card_path}: shape must be that of the network in {path}, {shape}, got {card.shape}. "
            "Copy both files again."
        )
    classes = family.conditions({}, config).get("num_classes", 0)
    if card.num_classes != classes:
        raise FolderError(
            f"{card_path}: num_classes must fit the network in {path}, which has {classes} "
            f"classes, got {card.num_classes}. Copy both files again."
        )
    for steps in card.stage.counts:
        try:
            clock.grid(steps)
        except GridError as error:
            raise FolderError(f"{card_path}: {error}") from None


def check_w_input(card: Card, takes_w: bool, card_path: Path) -> None:
    """Raise FolderError where a network takes w as an input and its card says otherwise."""
    if takes_w and card.w_range is None:
        raise FolderError(
            f"{card_path}: stage {card.stage.kind!r} must be that of the weights, got a network "
            "with an input for w, which a student of one pass has. Copy the file again."
        )
    live = card.w_range is not None and card.w_range[0] != card.w_range[1]
    if live and not takes_w:
        raise FolderError(
            f"{card_path}: w_range must be null or one number, got {card.w_range} and a network "
            "without an input for w. Copy the file again."
        )


def check_steps_input(card: Card, projection: nn.Linear | None, card_path: Path) -> None:
    """Raise FolderError where a network has another input for the number of steps than its card."""
    found = 0 if projection is None else projection.in_features
    if found != len(card.stage.any_steps):
        raise FolderError(
            f"{card_path}: any_steps must be the numbers of steps that the network has an input "
            f"for, {found} of them, got {list(card.stage.any_steps)}. Copy the file again."
        )


def check_same_shape(card: Card, base: Card, card_path: Path) -> None:
    """Raise FolderError where the card of an adapter is of another model than its base."""
    for name in ("family", "shape", "num_classes"):
        ours, theirs = getattr(card, name), getattr(base, name)
        if ours != theirs:
            raise FolderError(
                f"{card_path}: {name} must be that of the base, {theirs}, got {ours}. Bring the "
                "base back that the adapter was trained over."
            )


def check_size(card: Card, shape: tuple[int, ...], factor: int = 1) -> None:
    """Raise ShapeError unless data have the shape that a model works on.

    Call it before a student is trained: it would be trained at one size and drawn at another, and
    an SDXL model has the size from its folder as an input.

    Args:
        card: of the teacher.
        shape: (C, H, W) of one example, in latents for a model of latents.
        factor: how many pixels high and wide one latent is; 1 for a model of images.
    """
    if tuple(shape) == card.shape:
        return
    what = "images" if factor == 1 else "latents"
    pixels = ""
    if factor > 1 and len(shape) == len(card.shape) == 3:
        given, right = ([factor * n for n in s[1:]] for s in (shape, card.shape))
        pixels = (
            f", which are images of {given[0]}x{given[1]} pixels in place of {right[0]}x{right[1]}"
        )
    sizes = card.shape[1:]
    side = factor * sizes[0] if len(sizes) == 2 and sizes[0] == sizes[1] else None
    advice = f"Set data.size to {side}" if side else "Give data of that size"
    raise ShapeError(
        f"the {what} must have the shape {tuple(card.shape)} that {card.name} works on, got "
        f"{tuple(shape)}{pixels}. {advice}, or give a teacher of that size."
    )
