"""A diffusers pipeline for class-conditional folders: class labels in, PIL images out.

The edge where another library's interface has `guidance_scale`: here, and only here, it is
turned into w = guidance_scale - 1.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    ImagePipelineOutput,
    UNet2DConditionModel,
)
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from fewstep.core.denoiser import guide
from fewstep.errors import RangeError, ShapeError
from fewstep.models.vae import decode_latents
from fewstep.models.w_input import w_features


class ClassConditionalPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Draw images of classes with a folder made by fewstep, in a loop over stock parts."""

    _optional_components: ClassVar = ["vae"]

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        vae: AutoencoderKL | None = None,
        steps: int | None = None,
        w_range: list[float] | None = None,  # what JSON makes of a pair
        sampler: str | None = None,
    ) -> None:
        """Hold the parts. steps, w_range and sampler say what the network was made for.

        vae: of a model of latents.
        """
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        self.register_to_config(steps=steps, w_range=w_range, sampler=sampler)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | list[int] | Tensor,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Return one image for every class label.

        Args:
            class_labels: class ids, one an image.
            num_inference_steps: by default the number that the model was made for.
            guidance_scale: 1 + w; 1 is no guidance.
            generator: of the noise, one for all or one an image.
            latents: (B, C, H, W) noise, in place of the generator's.
            output_type: "pil", "np" (B, H, W, C) in [0, 1], "pt" (B, C, H, W) in [-1, 1], or
                "latent", the states themselves.
            return_dict: False for a plain tuple.

        Raises:
            RangeError: steps, guidance or class label that the model was not made for.
        """
        labels = torch.as_tensor(class_labels, device=self.unet.device).reshape(-1)
        w = guidance_scale - 1.0
        steps = self._check(labels, num_inference_steps, w)
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (len(labels), self.unet.config.in_channels, height, width)
        if latents is not None and tuple(latents.shape) != shape:
            raise ShapeError(f"latents of shape {tuple(latents.shape)}; they must be {shape}.")
        z = latents
        if z is None:
            z = randn_tensor(
                shape, generator=generator, device=self.unet.device, dtype=self.unet.dtype
            )
        self.scheduler.set_timesteps(steps, device=self.unet.device)
        weights = torch.full((len(labels),), w, device=self.unet.device)
        for t in self.progress_bar(self.scheduler.timesteps):
            v = self._velocity(z, t, labels, weights)
            z = self.scheduler.step(v, t, z, return_dict=False)[0]
        if self.vae is not None and output_type != "latent":
            z = decode_latents(self.vae, z)
        images = z if output_type in ("pt", "latent") else self._to_images(z, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _check(self, labels: Tensor, steps: int | None, w: float) -> int:
        made_for, w_range = self.config.steps, self.config.w_range
        if self.config.sampler not in (None, "deterministic"):
            raise RangeError(
                f"this model was made for the {self.config.sampler!r} sampler, which no stock "
                "scheduler has; sample it with fewstep.sample."
            )
        steps = made_for if steps is None else steps
        if steps is None or (made_for is not None and steps != made_for):
            raise RangeError(
                f"num_inference_steps = {steps}; this model was made for {made_for or 'any'}."
                " Give that number."
            )
        if self.scheduler.config.num_train_timesteps % steps:
            raise RangeError(
                f"num_inference_steps = {steps} does not divide the scheduler's "
                f"{self.scheduler.config.num_train_timesteps} timesteps; use a power of two."
            )
        if w_range is not None and not w_range[0] <= w <= w_range[1]:
            low, high = (1 + x for x in w_range)
            raise RangeError(
                f"guidance_scale = {1 + w:g}; this model was trained for [{low:g}, {high:g}]."
            )
        classes = self.unet.config.num_class_embeds
        if not bool(((labels >= 0) & (labels < classes)).all()):
            raise RangeError(
                f"class labels {labels.tolist()}; they must lie in 0..{classes - 2} "
                f"({classes - 1} draws any class)."
            )
        return steps

    def _velocity(self, z: Tensor, t: Tensor, labels: Tensor, w: Tensor) -> Tensor:
        dim = self.unet.config.time_cond_proj_dim
        if dim is not None:
            features = w_features(w, dim, band=None).to(z.dtype)
            v: Tensor = self.unet(
                z, t, None, class_labels=labels, timestep_cond=features, return_dict=False
            )[0]
            return v
        null = torch.full_like(labels, self.unet.config.num_class_embeds - 1)
        both = self.unet(
            torch.cat([z, z]), t, None, class_labels=torch.cat([labels, null]), return_dict=False
        )[0]
        v_cond, v_uncond = both.chunk(2)
        return guide(v_cond, v_uncond, w)

    @staticmethod
    def _to_images(z: Tensor, output_type: str) -> Any:
        array = ((z.float() + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "np":
            return array
        pixels = np.round(array * 255).astype(np.uint8)
        return [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in pixels]
