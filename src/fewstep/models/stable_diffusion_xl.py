"""Stable Diffusion XL: two CLIP text encoders, pooled text, and the picture's size and crop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.errors import FolderError, ShapeError
from fewstep.models.parts import read_json, size_of, vae_factor
from fewstep.models.text import encode
from fewstep.models.text_unet import TextUNet

KEYS = ("text", "pooled", "time_ids")


class StableDiffusionXL(TextUNet):
    """A denoiser of SDXL's latents; cond: a dict of text (B, L, D), pooled (B, P), time_ids (B, 6).

    time_ids: original height and width, crop's top and left, target height and width, in pixels.
    """

    family = "stable-diffusion-xl"
    pipelines = (
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
    )
    parts: ClassVar = {
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": ("CLIPTokenizer",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer_2": ("CLIPTokenizer",),
    }
    unet_must: ClassVar = {**TextUNet.unet_must, "addition_embed_type": "text_time"}

    @classmethod
    def null_prompt(cls, index: dict[str, Any]) -> str | None:
        """Return None (zeros) where the folder says `force_zeros_for_empty_prompt`, else ""."""
        return None if index.get("force_zeros_for_empty_prompt", True) else ""

    @classmethod
    def encode(
        cls, folder: Path, prompts: Sequence[str], *, device: str = "cpu", batch_size: int = 64
    ) -> dict[str, Tensor]:
        """Return both encoders' layers before the last, side by side, at the full picture size."""
        first, second = (
            encode(
                folder,
                prompts,
                tokenizer=f"tokenizer{end}",
                encoder=f"text_encoder{end}",
                device=device,
                batch_size=batch_size,
            )
            for end in ("", "_2")
        )
        if second.pooled is None:
            raise FolderError(f"{folder / 'text_encoder_2'} gives no pooled text (no projection).")
        lengths = first.penultimate.shape[1], second.penultimate.shape[1]
        if lengths[0] != lengths[1]:
            raise FolderError(
                f"{folder}: both tokenizers must have one model_max_length, got {lengths[0]} and "
                f"{lengths[1]}. Copy tokenizer/ and tokenizer_2/ again."
            )
        height, width = picture_size(folder)
        ids = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=device)
        return {
            "text": torch.cat([first.penultimate, second.penultimate], dim=-1),
            "pooled": second.pooled,
            "time_ids": ids.repeat(len(prompts), 1),
        }

    @staticmethod
    def zeros(cond: Cond) -> Cond:
        """Return the condition with zeros for text and pooled text; the picture's size stays."""
        assert isinstance(cond, dict)
        return {k: t if k == "time_ids" else torch.zeros_like(t) for k, t in cond.items()}

    def told(self, cond: Cond, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the text embeddings, and pooled text and sizes for the time embedding."""
        if not isinstance(cond, dict) or set(cond) != set(KEYS):
            found = sorted(cond) if isinstance(cond, dict) else "a tensor"
            raise ShapeError(
                f"this model's condition is a dict of {', '.join(KEYS)}, not {found}. Make it with "
                "fewstep.models.encode_prompts(folder, prompts)."
            )
        added = {"text_embeds": cond["pooled"].to(dtype), "time_ids": cond["time_ids"].to(dtype)}
        return cond["text"].to(dtype), added

    def _check_cond(self, cond: Cond) -> None:
        text, added = self.told(cond, self.unet.dtype)
        self._check_text(text)
        if added["time_ids"].shape[1:] != (6,) or added["text_embeds"].ndim != 2:
            raise ShapeError(
                f"time_ids {tuple(added['time_ids'].shape)} and pooled "
                f"{tuple(added['text_embeds'].shape)}; they must be (B, 6) and (B, P)."
            )


def picture_size(folder: Path) -> tuple[int, int]:
    """Return (height, width) in pixels of the pictures that a pipeline folder draws by default."""
    path, factor = folder / "unet" / "config.json", vae_factor(folder)
    height, width = size_of(read_json(path), path)
    return height * factor, width * factor
