"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, its last layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.errors import ShapeError
from fewstep.models.text import encode
from fewstep.models.text_unet import TextUNet


class StableDiffusion(TextUNet):
    """A denoiser of Stable Diffusion's latents; cond: (B, L, D) text embeddings."""

    family = "stable-diffusion"
    pipelines = (
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
    )
    parts: ClassVar = {
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": ("CLIPTokenizer",),
    }
    unet_must: ClassVar = {**TextUNet.unet_must, "addition_embed_type": None}

    @classmethod
    def encode(
        cls, folder: Path, prompts: Sequence[str], *, device: str = "cpu", batch_size: int = 64
    ) -> Tensor:
        """Return (B, L, D): the encoder's last layer, normed."""
        return encode(
            folder,
            prompts,
            tokenizer="tokenizer",
            encoder="text_encoder",
            device=device,
            batch_size=batch_size,
        ).last

    @staticmethod
    def zeros(cond: Cond) -> Cond:
        """Return zeros of the shape of the embeddings."""
        assert isinstance(cond, Tensor)
        return torch.zeros_like(cond)

    def told(self, cond: Cond, dtype: torch.dtype) -> tuple[Tensor, None]:
        """Return the text embeddings, and nothing else."""
        if not isinstance(cond, Tensor):
            raise ShapeError("this model's condition is one tensor of text embeddings, not a dict.")
        return cond.to(dtype), None

    def _check_cond(self, cond: Cond) -> None:
        self._check_text(self.told(cond, self.unet.dtype)[0])
