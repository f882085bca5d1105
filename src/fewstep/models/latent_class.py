"""Class-conditional latent models: as `unet-class`, on the latents of an autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from fewstep.models.card import Card
from fewstep.models.unet_class import UNetModel

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


class LatentClass(UNetModel):
    """A denoiser of latents on the native clock; cond: (B,) class ids, `card.null_class` for none.

    As the latent model of ImageNet 256 of Meng et al. 2022, section 4.2.
    """

    family: ClassVar[str] = "latent-class"
    source: Path

    def __init__(self, unet: UNet2DConditionModel, card: Card, source: Path) -> None:
        """Wrap a network, say with a card what it is, and where its `vae/` is."""
        super().__init__(unet, card)
        self.source = source

    def like(self, unet: UNet2DConditionModel, card: Card) -> LatentClass:
        """Return another model on the latents of the same autoencoder."""
        return LatentClass(unet, card, self.source)
