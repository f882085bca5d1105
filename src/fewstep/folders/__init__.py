"""Model folders: read, written, and what is done with their autoencoders and text encoders."""

from __future__ import annotations

from fewstep.folders.facts import check_size
from fewstep.folders.own import Factory
from fewstep.folders.prompts import encode_prompts, encoders_sha256
from fewstep.folders.read import card_in, is_pipeline, load, load_model
from fewstep.folders.vae import image_decoder, image_shape, load_vae, to_images
from fewstep.folders.write import save_model

__all__ = [
    "Factory",
    "card_in",
    "check_size",
    "encode_prompts",
    "encoders_sha256",
    "image_decoder",
    "image_shape",
    "is_pipeline",
    "load",
    "load_model",
    "load_vae",
    "save_model",
    "to_images",
]
