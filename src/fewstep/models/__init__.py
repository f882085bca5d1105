"""Denoisers made of diffusers networks, and the folders that they live in."""

from __future__ import annotations

from fewstep.models.card import Card, Parent, read_card
from fewstep.models.folder import card_of, lineage, load, load_model, save_model
from fewstep.models.unet_class import UNetConfig, UNetModel, build_unet, with_w_input

Model = UNetModel

__all__ = [
    "Card",
    "Model",
    "Parent",
    "UNetConfig",
    "UNetModel",
    "build_unet",
    "card_of",
    "lineage",
    "load",
    "load_model",
    "read_card",
    "save_model",
    "with_w_input",
]
