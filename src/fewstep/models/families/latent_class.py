"""Class-conditional latent models: as `unet-class`, on the latents of an autoencoder.

As the latent model of ImageNet 256 of Meng et al. 2022, section 4.2.
"""

from __future__ import annotations

from dataclasses import replace

from fewstep.models.families.unet_class import UNET_CLASS

LATENT_CLASS = replace(UNET_CLASS, name="latent-class", parts={"vae": ("AutoencoderKL",)})
