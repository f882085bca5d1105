"""A recipe's images as a model of latents sees them: encoded once, kept under their content."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.atomic import json_sha256
from fewstep.core.cond import Cond, take
from fewstep.data import DataConfig, Dataset, Prompts, captions_of
from fewstep.data.latents import Latents, cache_latents
from fewstep.errors import FolderError, NonFiniteError, RecipeError
from fewstep.files.cache import cache_root
from fewstep.folders import encode_prompts, encoders_sha256, is_pipeline, load_vae
from fewstep.models import encode_images, encoders_kept, read_card
from fewstep.models.card import CARD
from fewstep.recipes.config import LatentConfig
from fewstep.recipes.reading import shown

Log = Callable[[str], None]


def encoded(
    images: Dataset | Prompts,
    data: DataConfig,
    config: LatentConfig,
    folder: Path,
    *,
    device: str = "cpu",
    say: Log | None = None,
    progress: bool = True,
) -> Latents:
    """Return the latents and conditions of a data set, encoded now or found from before.

    images: of `data`, or prompts alone, which have no latents. folder: of the parts that encode.
    Autoencoder and text encoder are in memory only while they are at work. Raises FolderError for
    parts that are missing or do not encode prompts, and as `cache_latents` does.
    """
    if config.cond == "prompt" and not is_pipeline(folder):
        raise FolderError(
            f"{folder} is not the folder of a stock pipeline and has no text encoder, which "
            "prompts need. Give one that is, or set latents.cond=class."
        )
    check_length(config, folder)
    encoder = _Encoder(images, data, config, folder, device)
    root = cache_root() / "latents" if config.root is None else Path(config.root)
    with encoders_kept():
        return cache_latents(
            root,
            encoder.identity(),
            encoder.count,
            encoder,
            shard_size=config.shard_size,
            dtype=getattr(torch, config.dtype),
            say=say,
            progress=progress,
        )


def check_length(config: LatentConfig, folder: Path) -> None:
    """Raise RecipeError where the model of a folder was made with prompts of another length."""
    card = folder / CARD
    known = read_card(folder).max_sequence_length if card.is_file() else config.max_sequence_length
    if known != config.max_sequence_length:
        raise RecipeError(
            f"latents.max_sequence_length must be that of {card}, {shown(known)}, got "
            f"{shown(config.max_sequence_length)}. Set it to that, or start from another model."
        )


class _Encoder:
    """Examples -> latents and conditions; mirror images come after all the others."""

    def __init__(
        self,
        images: Dataset | Prompts,
        data: DataConfig,
        config: LatentConfig,
        folder: Path,
        device: str,
    ) -> None:
        self.images, self.data, self.config = images, data, config
        self.folder, self.device = folder, device
        alone = isinstance(images, Prompts)
        if alone and config.flip:
            raise RecipeError(
                "latents.flip=true needs images, and the data are prompts alone. Leave "
                "latents.flip out."
            )
        if alone and config.cond == "class":
            raise RecipeError(
                "latents.cond=class needs images, and the data are prompts alone. Set "
                "latents.cond=prompt."
            )
        self.count = len(images) * (2 if config.flip else 1)

    @cached_property
    def vae(self) -> Any:
        """The autoencoder: opened once for all shards, where there are any to encode."""
        return load_vae(self.folder, self.device)

    def identity(self) -> dict[str, str]:
        how: dict[str, object] = {"cond": self.config.cond, "flip": self.config.flip}
        if self.config.cond == "prompt":
            how["captions"] = list(self.data.captions)
            # Left out where it is not set, so that caches from before there was a choice are found.
            if self.config.max_sequence_length is not None:
                how["max_sequence_length"] = self.config.max_sequence_length
        return {
            "encoders": encoders_sha256(self.folder, prompts=self.config.cond == "prompt"),
            "data": self.images.content_hash(),
            "how": json_sha256(how),
        }

    def __call__(self, part: range) -> tuple[Tensor, Cond]:
        numbers = torch.tensor(part)
        index = numbers % len(self.images)
        if isinstance(self.images, Prompts):
            return torch.zeros(len(index), 0), self._prompts(self.images.texts(index))
        x, label = self.images.batch(index)
        assert isinstance(label, Tensor)
        mirrored = (numbers >= len(self.images))[:, None, None, None]
        x = torch.where(mirrored, x.flip(-1), x)
        z = encode_images(self.vae, x.to(self.device)).cpu()
        _check_finite(z, f"the autoencoder of {self.folder}")
        if self.config.cond == "class":
            return z, label
        texts = [self.images.class_texts[k] for k in label.tolist()]
        return z, self._prompts(captions_of(self.data.captions, texts, index))

    def _prompts(self, texts: list[str]) -> Cond:
        said = sorted(set(texts))
        places = {text: k for k, text in enumerate(said)}
        length = self.config.max_sequence_length
        cond = encode_prompts(self.folder, said, device=self.device, max_sequence_length=length)
        for t in cond.values() if isinstance(cond, dict) else [cond]:
            _check_finite(t, f"a text encoder of {self.folder}")
        return take(cond, torch.tensor([places[t] for t in texts]))


def _check_finite(made: Tensor, by: str) -> None:
    """Raise NonFiniteError where a part of the model makes NaN or infinity of good inputs."""
    if not bool(torch.isfinite(made).all()):
        raise NonFiniteError(
            f"{by} makes values that are NaN or infinite. Its weights are damaged, or overflow in "
            "half precision: give a folder with weights in float32."
        )
