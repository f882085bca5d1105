"""Draw with a trained folder here and in stock pipelines without fewstep; say how they differ.

python docs/results/stock.py STUDENT IMAGES [W]

    python docs/results/stock.py runs/latent-small/student-4 train.parquet 4
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PROMPTS = ["a photo of a horse", "a photo of a ship", "a photo of a frog", "one truck"]
B = len(PROMPTS)


def stock(folder: str, w: float, pixels: Tensor, mask: Tensor, noise: Tensor) -> dict[str, Any]:
    """Return what stock pipelines draw, and how often they called the network, with which batch."""
    import diffusers

    shared = {"prompt": PROMPTS, "guidance_scale": 1 + w, "output_type": "pt"}
    found: dict[str, Any] = {}

    def draw(name: str, pipeline: str, **call: Any) -> None:
        pipe = getattr(diffusers, pipeline).from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        calls: list[int] = []
        pipe.unet.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
        draws = torch.Generator().manual_seed(0)
        found[name] = pipe(**shared, **call, generator=draws).images
        found[f"{name}: calls"] = calls

    steps = int(folder.rstrip("/").rpartition("-")[2])
    size = {"height": pixels.shape[2], "width": pixels.shape[3]}
    draw("text", "StableDiffusionPipeline", latents=noise, num_inference_steps=steps)
    told = {"image": pixels, "num_inference_steps": steps}
    for strength in (1.0, 0.5):
        draw(f"image {strength}", "StableDiffusionImg2ImgPipeline", strength=strength, **told)
    draw("inpaint", "StableDiffusionInpaintPipeline", mask_image=mask, strength=1.0, **told, **size)
    return found


def main(folder: Path, images: str, w: float) -> None:
    import fewstep
    from fewstep.core.angle import add_noise
    from fewstep.core.samplers import get_sampler, run
    from fewstep.core.seed import Noise
    from fewstep.data import DataConfig, open_dataset
    from fewstep.models import decode_latents, encode_images, encode_prompts, load_vae

    vae, model = load_vae(folder), fewstep.load(folder)
    shape, steps = model.card.shape, int(model.card.steps)
    x, _ = open_dataset(DataConfig(name=images, size=32), "held-out").batch(torch.arange(B))
    mask = torch.zeros(B, 1, *x.shape[2:])
    mask[..., x.shape[3] // 2 :] = 1.0
    noise = Noise(0, range(B)).draw(shape, torch.float32, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as where:
        asked, got = Path(where) / "asked.pt", Path(where) / "got.pt"
        torch.save({"folder": str(folder), "w": w, "pixels": x / 2 + 0.5, "mask": mask,
                    "noise": noise}, asked)  # fmt: skip
        subprocess.run([sys.executable, __file__, "--stock", asked, got], check=True)
        theirs = torch.load(got, weights_only=True)
    calls = {k: v for k, v in theirs.items() if k.endswith("calls")}
    print(f"calls of the network, by batch: {calls}")

    def gap(name: str, z: Tensor) -> float:
        ours = (decode_latents(vae, z) / 2 + 0.5).clamp(0, 1)
        return float((ours - theirs[name]).abs().max())

    cond = encode_prompts(folder, PROMPTS)
    drawn = fewstep.sample(model, cond, w=w)
    print(f"text to image, largest difference of pixels in [0, 1]: {gap('text', drawn):.1e}")
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        latents = vae.encode(x).latent_dist.sample(generator=draws) * vae.config.scaling_factor
    eps = torch.randn(latents.shape, generator=draws)
    for strength in (1.0, 0.5):
        grid = model.traits.clock(steps)[steps - int(steps * strength) :]
        z = add_noise(latents, eps, grid[0])
        z = run(get_sampler("deterministic"), model, z, cond, torch.full((B,), w), grid)
        print(f"image to image, strength {strength}: {gap(f'image {strength}', z):.1e}")
    free = fewstep.sample(model, cond, w=w, z=eps)
    print(f"image to image at strength 1 against text to image: {gap('image 1.0', free):.1e}")
    known = mask.expand_as(x) < 0.5
    painted = theirs["inpaint"] * 2 - 1
    there_and_back = decode_latents(vae, encode_images(vae, x)).clamp(-1, 1)
    for name, reference in (("the image", x), ("the autoencoder's own", there_and_back)):
        error = (painted - reference).abs()[known] / 2
        print(
            f"inpainting, known half, against {name}: mean {float(error.mean()):.3f}, largest "
            f"{float(error.max()):.3f} of [0, 1]"
        )
    ours = fewstep.inpaint(model, encode_images(vae, x), mask[..., ::4, ::4], cond, w=w)
    kept = ours - encode_images(vae, x)
    print(f"inpainting here, known latents: {float(kept[..., : shape[2] // 2].abs().max()):.1e}")


if __name__ == "__main__":
    if sys.argv[1] == "--stock":
        sys.modules["fewstep"] = None  # type: ignore[assignment]  importing it raises now
        told = torch.load(sys.argv[2], weights_only=True)
        torch.save(stock(**told), sys.argv[3])
    else:
        main(Path(sys.argv[1]), sys.argv[2], *map(float, sys.argv[3:4] or ["4"]))
