"""Draw with stock diffusers pipelines in a process where fewstep cannot be imported.

    python -m studies.stock_drawing REQUEST.pt ANSWER.pt

`studies.stock_pipelines` runs this. REQUEST.pt has the arguments of `draw`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from torch import Tensor


def draw(
    *,
    folder: str,
    prompts: Sequence[str],
    steps: int,
    w: float,
    strengths: Sequence[float],
    pixels: Tensor,
    mask: Tensor,
    noise: Tensor,
) -> dict[str, Any]:
    """Return the images of each pipeline, and the batch size of every call of its network.

    Args:
        folder: of a student.
        prompts: B prompts.
        steps: of the student.
        w: guidance weight; diffusers' guidance_scale is 1 + w.
        strengths: of image to image.
        pixels: (B, C, H, W) in [0, 1], the images that are edited.
        mask: (B, 1, H, W), 1 where inpainting draws.
        noise: the latents that text to image starts from.
    """
    found: dict[str, Any] = {}

    def run(name: str, pipeline: str, **call: Any) -> None:
        pipe = getattr(diffusers, pipeline).from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        batches: list[int] = []
        pipe.unet.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
        call |= {"prompt": list(prompts), "guidance_scale": 1 + w, "num_inference_steps": steps}
        draws = torch.Generator().manual_seed(0)
        found[name] = pipe(**call, output_type="pt", generator=draws).images
        found[f"{name}: calls"] = batches

    run("text", "StableDiffusionPipeline", latents=noise)
    for strength in strengths:
        pipeline = "StableDiffusionImg2ImgPipeline"
        run(f"image {strength}", pipeline, image=pixels, strength=strength)
    run(
        "inpaint",
        "StableDiffusionInpaintPipeline",
        image=pixels,
        mask_image=mask,
        strength=1.0,
        height=pixels.shape[2],
        width=pixels.shape[3],
    )
    return found


if __name__ == "__main__":
    # An import of fewstep now raises ImportError.
    sys.modules["fewstep"] = None  # type: ignore[assignment]
    torch.save(draw(**torch.load(sys.argv[1], weights_only=True)), sys.argv[2])
