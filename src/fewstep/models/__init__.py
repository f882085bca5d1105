"""Denoisers made of networks, on the clocks that these were trained on."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from fewstep.models.beta_denoiser import BetaDenoiser
from fewstep.models.card import Card, Parent, lineage, read_card
from fewstep.models.clocks.betas import BetaClock
from fewstep.models.families import FAMILIES, Family
from fewstep.models.lora import Lora
from fewstep.models.model import Model, card_of, model_of
from fewstep.models.prompts import encoders_kept
from fewstep.models.student import fold_steps, fold_w, merge_adapter, student_of, with_w_input
from fewstep.models.unet import UNetConfig, build_unet
from fewstep.models.vae import decode_latents, encode_images

__all__ = [
    "FAMILIES",
    "BetaClock",
    "BetaDenoiser",
    "Card",
    "Family",
    "Lora",
    "Model",
    "Parent",
    "UNetConfig",
    "build_unet",
    "card_of",
    "decode_latents",
    "encode_images",
    "encoders_kept",
    "fold_steps",
    "fold_w",
    "lineage",
    "merge_adapter",
    "model_of",
    "read_card",
    "student_of",
    "with_w_input",
]

# What was here once: reading and writing folders, and names that have changed since.
_IN_FOLDERS = (
    "Factory", "card_in", "check_size", "encode_prompts", "encoders_sha256", "image_shape",
    "is_pipeline", "load", "load_model", "load_vae", "save_model", "to_images",
)  # fmt: skip
_RENAMED = {
    "Table": "BetaClock",
    "TableDenoiser": "BetaDenoiser",
    "UNetModel": "Model",
    "network_of": "model_of",
}


def __getattr__(name: str) -> Any:
    """Return what users' programs may still import from here."""
    if name in _IN_FOLDERS:
        return getattr(importlib.import_module("fewstep.folders"), name)
    if name in _RENAMED:
        new = _RENAMED[name]
        text = f"fewstep.models.{name} is now fewstep.models.{new}"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return globals()[new]
    raise AttributeError(f"module 'fewstep.models' has no attribute {name!r}")
