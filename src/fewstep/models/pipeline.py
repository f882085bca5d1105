"""A diffusers pipeline for class-conditional folders: class labels in, images out.

Only this module and the command line's refusal know the `guidance_scale` of other libraries. Here
it becomes w = guidance_scale - 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    ImagePipelineOutput,
    LCMScheduler,
    UNet2DConditionModel,
)
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from fewstep.core.cond import as_cond
from fewstep.core.denoiser import guide
from fewstep.core.finite import check_finite
from fewstep.core.sample import W_LIMIT, whole_number
from fewstep.errors import RangeError, ShapeError
from fewstep.models.vae import decode_latents
from fewstep.models.w_input import w_features

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
StepEnd = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]


class ClassConditionalPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Draw images of classes from a folder made by fewstep, with stock diffusers parts."""

    model_cpu_offload_seq = "unet->vae"
    _optional_components: ClassVar = ["vae"]
    _callback_tensor_inputs: ClassVar = ["latents"]

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler | LCMScheduler,
        vae: AutoencoderKL | None = None,
        steps: int | None = None,
        w_range: list[float] | None = None,  # JSON has lists in place of pairs
        sampler: str | None = None,
    ) -> None:
        """Hold the parts of a model.

        Args:
            unet: the network.
            scheduler: of the native clock; see `fewstep.models.clocks.native`. LCMScheduler for a
                consistency student.
            vae: the autoencoder of a latent model.
            steps: number of steps that the network was made for; None for any.
            w_range: range of w that the network was trained for; None for any.
            sampler: name of the sampler that the network was made for; None for any.
        """
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        self.register_to_config(steps=steps, w_range=w_range, sampler=sampler)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int] | Tensor,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        num_images_per_prompt: int = 1,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Return num_images_per_prompt images per class label, the images of a label together.

        Args:
            class_labels: class ids: an integer, a list, or an integer tensor.
            num_inference_steps: by default the number that the model was made for.
            guidance_scale: one number, 1 + w; 1 is no guidance.
            generator: of the noise: one for all images, or one per image.
            latents: (B, C, H, W) noise in the dtype of the network, in place of the generator's;
                B is the number of images.
            output_type: "pil", "np" (B, H, W, C) in [0, 1], "pt" (B, C, H, W) in [-1, 1] as
                `fewstep.sample` returns, or "latent", the states themselves.
            return_dict: False returns a plain tuple.
            num_images_per_prompt: images per class label.
            callback_on_step_end: called after every step with this pipeline, the index of the
                step, the timestep and a dict of tensors; what it returns replaces them.
            callback_on_step_end_tensor_inputs: names in that dict; only "latents" is offered.

        Raises:
            RangeError: a class, number of steps, guidance scale, number of images, number of
                generators or output type that is not allowed.
            ShapeError: labels that are not integers, or latents of another shape or dtype.
            NonFiniteError: the images hold NaN or infinity.
        """
        device = self._execution_device
        self._check_options(output_type, callback_on_step_end_tensor_inputs)
        labels = self._labels(class_labels, num_images_per_prompt).to(device)
        w = self._w(guidance_scale)
        steps = self._steps(num_inference_steps)
        z = self._start(len(labels), generator, latents, device)
        weights = torch.full((len(labels),), w, device=device)
        self.scheduler.set_timesteps(steps, device=device)
        # It adds noise between its steps; other schedulers may not take a generator.
        draws = {"generator": generator} if self.config.sampler == "consistency" else {}
        z = z * self.scheduler.init_noise_sigma
        for index, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            v = self._velocity(self.scheduler.scale_model_input(z, t), t, labels, weights)
            z = self.scheduler.step(v, t, z, return_dict=False, **draws)[0]
            if callback_on_step_end is not None:
                offered = {name: z for name in callback_on_step_end_tensor_inputs}
                z = (callback_on_step_end(self, index, t, offered) or {}).get("latents", z)
        images = self._output(z, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _check_options(self, output_type: str, tensor_inputs: Sequence[str]) -> None:
        if self.config.sampler not in (None, "deterministic", "consistency"):
            raise RangeError(
                "this pipeline samples with a stock scheduler, and none has the "
                f"{self.config.sampler!r} sampler that this model was made for. Use fewstep.sample."
            )
        if output_type not in OUTPUT_TYPES:
            raise RangeError(
                f"output_type must be one of {', '.join(map(repr, OUTPUT_TYPES))}, got "
                f"{output_type!r}. Use 'pil' for pictures."
            )
        unknown = [name for name in tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise RangeError(
                "callback_on_step_end_tensor_inputs must be among "
                f"{self._callback_tensor_inputs}, got {unknown}. Leave them out."
            )

    def _labels(self, given: object, images_per_label: int) -> Tensor:
        """Return the class ids (B,) of all images."""
        try:
            labels = as_cond(given)
        except ShapeError:
            labels = {}
        if isinstance(labels, dict) or labels.is_floating_point() or not labels.numel():
            raise ShapeError(
                f"class_labels must be integers, at least one, got {given!r}. Pass class ids such "
                "as [3, 7]."
            )
        labels, classes = labels.reshape(-1), self.unet.config.num_class_embeds
        if not bool(((labels >= 0) & (labels < classes)).all()):
            raise RangeError(
                f"class_labels must lie in 0..{classes - 2} ({classes - 1} draws any class), got "
                f"{labels.tolist()}. Pass ids of classes that the model has."
            )
        count = whole_number(images_per_label, "num_images_per_prompt", 1)
        return labels.repeat_interleave(count)

    def _w(self, guidance_scale: object) -> float:
        number = isinstance(guidance_scale, Real) and math.isfinite(guidance_scale)
        if not number or abs(float(guidance_scale) - 1.0) > W_LIMIT:  # type: ignore[arg-type]
            raise RangeError(
                f"guidance_scale must be one number within [{1 - W_LIMIT:g}, {1 + W_LIMIT:g}], got "
                f"{guidance_scale!r}. Call the pipeline once per guidance scale."
            )
        w, w_range = float(guidance_scale) - 1.0, self.config.w_range  # type: ignore[arg-type]
        if w_range is not None and not w_range[0] - 1e-6 <= w <= w_range[1] + 1e-6:
            low, high = (1 + x for x in w_range)
            raise RangeError(
                f"guidance_scale must lie in [{low:g}, {high:g}], the range that this model was "
                f"trained for, got {1 + w:g}. Choose one inside it."
            )
        return w

    def _steps(self, steps: int | None) -> int:
        made_for = self.config.steps
        if steps is None:
            if made_for is None:
                raise RangeError(
                    "This model accepts any number of steps: pass one, for example "
                    "num_inference_steps=64."
                )
            steps = made_for
        steps = whole_number(steps, "num_inference_steps", 1)
        timesteps = self.scheduler.config.num_train_timesteps
        if made_for not in (None, steps):
            raise RangeError(
                f"num_inference_steps must be the number that this model was made for, got {steps}"
                f" where it was made for {made_for}. Leave it out."
            )
        if timesteps % steps:
            raise RangeError(
                f"num_inference_steps must divide the {timesteps} timesteps of the scheduler, got "
                f"{steps}. Use a power of two."
            )
        return steps

    def _start(
        self,
        count: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: object,
        device: torch.device,
    ) -> Tensor:
        """Return the noise (B, C, H, W) to start from."""
        if isinstance(generator, list) and len(generator) != count:
            raise RangeError(
                f"there must be one generator, or one per image, got {len(generator)} generators "
                f"for {count} images. Pass {count}."
            )
        size, dtype = self.unet.config.sample_size, self.unet.dtype
        height, width = (size, size) if isinstance(size, int) else size
        shape = (count, self.unet.config.in_channels, height, width)
        if latents is None:
            noise: Tensor = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
            return noise
        found = f"a {type(latents).__name__}"
        if isinstance(latents, Tensor):
            if tuple(latents.shape) == shape and latents.dtype == dtype:
                return check_finite(latents.to(device), "latents", "Draw them with torch.randn.")
            found = f"{tuple(latents.shape)} in {latents.dtype}"
        raise ShapeError(
            f"latents must be a tensor of shape {shape} in {dtype}, got {found}. Draw them with "
            f"torch.randn({shape}, dtype={dtype})."
        )

    def _output(self, z: Tensor, output_type: str) -> Any:
        """Return states as images of an output type."""
        images = z
        if self.vae is not None and output_type != "latent":
            images = decode_latents(self.vae, z)
        check_finite(images, "the images", "Check the weights and the guidance scale.")
        return images if output_type in ("pt", "latent") else self._to_images(images, output_type)

    def _velocity(self, z: Tensor, t: Tensor, labels: Tensor, w: Tensor) -> Tensor:
        dim = self.unet.config.time_cond_proj_dim
        if dim is not None:
            features = w_features(w, dim, band=None).to(z.dtype)
            v: Tensor = self.unet(
                z, t, None, class_labels=labels, timestep_cond=features, return_dict=False
            )[0]
            return v
        if self.config.w_range is not None:
            fixed: Tensor = self.unet(z, t, None, class_labels=labels, return_dict=False)[0]
            return fixed
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
