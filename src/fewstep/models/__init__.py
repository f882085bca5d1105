"""Denoisers made of diffusers networks, and the folders that they live in."""

from __future__ import annotations

from fewstep.models.card import Card, Parent, read_card
from fewstep.models.facts import check_size
from fewstep.models.folder import card_in, card_of, lineage, load, load_model, save_model
from fewstep.models.hub import local
from fewstep.models.latent_class import LatentClass
from fewstep.models.lora import Lora
from fewstep.models.own import Factory, OwnModel
from fewstep.models.pipeline_folder import encode_prompts, encoders_sha256, is_pipeline
from fewstep.models.student import merge_adapter, student_of
from fewstep.models.table import Table
from fewstep.models.table_denoiser import TableDenoiser
from fewstep.models.text import encoders_kept
from fewstep.models.text_unet import TextUNet
from fewstep.models.unet_class import UNetConfig, UNetModel, build_unet, network_of, with_w_input
from fewstep.models.vae import (
    decode_latents,
    encode_images,
    image_shape,
    load_vae,
    to_images,
)

Model = UNetModel

__all__ = [
    "Card",
    "Factory",
    "LatentClass",
    "Lora",
    "Model",
    "OwnModel",
    "Parent",
    "Table",
    "TableDenoiser",
    "TextUNet",
    "UNetConfig",
    "UNetModel",
    "build_unet",
    "card_in",
    "card_of",
    "check_size",
    "decode_latents",
    "encode_images",
    "encode_prompts",
    "encoders_kept",
    "encoders_sha256",
    "image_shape",
    "is_pipeline",
    "lineage",
    "load",
    "load_model",
    "load_vae",
    "local",
    "merge_adapter",
    "network_of",
    "read_card",
    "save_model",
    "student_of",
    "to_images",
    "with_w_input",
]
