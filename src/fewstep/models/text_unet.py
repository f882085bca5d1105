"""Text-to-image latent models: a stock UNet2DConditionModel on the clock of its own scheduler.

A family (one file each) says which parts its folder has, how a prompt becomes a condition, and
how the network is told of it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.errors import FolderError, ShapeError
from fewstep.models.card import Card
from fewstep.models.pipeline_model import PipelineModel
from fewstep.models.table import Table
from fewstep.models.w_input import w_features
from fewstep.models.weights import load_part

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


class TextUNet(PipelineModel):
    """A denoiser of latents: v = model(z, phi, cond, w), one pass.

    z: (B, C, h, w) latents, scaled as the folder's pipelines scale them. A network without a w
    input ignores w; wrap it in `Guided` (as `load` does for a teacher).
    """

    unet_must: ClassVar[dict[str, Any]] = {
        "class_embed_type": None,
        "encoder_hid_dim_type": None,
        "num_class_embeds": None,
    }

    def __init__(self, unet: UNet2DConditionModel, card: Card, table: Table, source: Path) -> None:
        """Wrap a network and say with a card what it is."""
        super().__init__(unet, card, table, source)
        self._null: Cond | None = None

    @classmethod
    @abstractmethod
    def encode(
        cls, folder: Path, prompts: Sequence[str], *, device: str = "cpu", batch_size: int = 64
    ) -> Cond:
        """Return the condition batch of the prompts, by the folder's own encoders."""

    @classmethod
    def null_prompt(cls, index: dict[str, Any]) -> str | None:
        """Return what a folder's pipelines tell the unconditional pass; None: zeros."""
        del index
        return ""

    @abstractmethod
    def told(self, cond: Cond, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return the network's `encoder_hidden_states` and `added_cond_kwargs`."""

    @property
    def null_cond(self) -> Cond:
        """The condition of the unconditional pass, a batch of 1; encoded when first asked for."""
        if self._null is None:
            prompt = self.card.null_prompt
            cond = self.encode(self.source, [prompt or ""])
            self._null = cond if prompt is not None else self.zeros(cond)
        return self._null

    @staticmethod
    @abstractmethod
    def zeros(cond: Cond) -> Cond:
        """Return the condition with zeros in place of the text."""

    def _check_text(self, text: Tensor) -> None:
        dim = self.unet.config.cross_attention_dim
        if text.ndim != 3 or text.shape[-1] != dim:
            raise ShapeError(
                f"text embeddings of shape {tuple(text.shape)}; this model's are (B, L, {dim}). "
                "Make them with fewstep.models.encode_prompts(folder, prompts)."
            )

    def forward(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        """Return v (B, C, h, w), converted from the network's own prediction (math.md 1)."""
        states, added = self.told(cond, z.dtype)
        features = (
            None if self.w_dim is None else w_features(w, self.w_dim, self.card.w_band).to(z.dtype)
        )
        inside, timestep = self.table.place(phi)
        out = self.unet(
            z,
            timestep,
            states,
            timestep_cond=features,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return self.table.velocity(out, z, inside)

    @classmethod
    def check_network(cls, config: dict[str, Any], path: Path) -> None:
        """Raise FolderError where the network needs something that this family does not tell it."""
        for key, right in cls.unet_must.items():
            if config.get(key) != right:
                raise FolderError(
                    f"{path}: {key}: {config.get(key)!r}; a {cls.family} network has {right!r}. "
                    "fewstep does not know what to tell this one."
                )
        channels = config.get("in_channels"), config.get("out_channels")
        if channels[0] != channels[1]:
            raise FolderError(
                f"{path}: in_channels: {channels[0]} and out_channels: {channels[1]}; they must be "
                "as many. A network made for inpainting or pix2pix has more inputs; give the "
                "text-to-image model."
            )

    @classmethod
    def read_network(cls, folder: Path) -> UNet2DConditionModel:
        """Return the folder's UNet2DConditionModel, in float32. Raises FolderError."""
        return load_unet(folder)

    @classmethod
    def conditions(cls, index: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
        """Return what the unconditional pass is told."""
        del config
        return {"null_prompt": cls.null_prompt(index)}


def load_unet(folder: Path) -> UNet2DConditionModel:
    """Return the U-Net of a model folder, in float32. Raises FolderError."""
    from diffusers import UNet2DConditionModel

    unet: UNet2DConditionModel = load_part(UNet2DConditionModel, folder / "unet")
    return unet
