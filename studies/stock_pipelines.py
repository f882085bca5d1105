"""Draw with a student in fewstep and in stock diffusers pipelines, and print how they differ.

    python -m studies stock_pipelines runs/latent-small/student-4 train.parquet --w 4

The pipelines run in a process where fewstep cannot be imported (studies/stock_drawing.py), from the
same noise and images. Differences are of pixels in [0, 1].
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fewstep
from fewstep.core.angle import add_noise
from fewstep.core.samplers import get_sampler, run
from fewstep.core.seed import Noise
from fewstep.data import DataConfig, open_dataset
from fewstep.folders import encode_prompts, load_model, load_vae
from fewstep.models import decode_latents, encode_images
from studies.common import StudyError, argument_parser

PROMPTS = ["a photo of a horse", "a photo of a ship", "a photo of a frog", "one truck"]
B = len(PROMPTS)
STRENGTHS = (1.0, 0.5)


def main(arguments: Sequence[str]) -> None:
    """Print the differences, one line per pipeline."""
    parser = argument_parser("stock_pipelines", __doc__)
    parser.add_argument("student", type=Path, help="folder of a student that draws by prompts")
    parser.add_argument("images", help="a parquet file; four held-out images are edited")
    parser.add_argument("--w", type=float, default=4.0, help="guidance weight; default 4")
    parser.add_argument("--size", type=int, default=32, help="of the images, in pixels; default 32")
    given = parser.parse_args(arguments)
    data = open_dataset(DataConfig(name=given.images, size=given.size), "held-out")
    x, _ = data.batch(torch.arange(B))
    for line in compare(given.student, x, given.w):
        print(line)


def compare(folder: Path, x: Tensor, w: float) -> list[str]:
    """Return what differs between fewstep and the stock pipelines of one student.

    Args:
        folder: of the student.
        x: (4, C, H, W) in [-1, 1], the images that are edited.
        w: guidance weight.

    Raises:
        StudyError: the model is no student.
    """
    vae, model = load_vae(folder), load_model(folder)
    shape, steps = model.card.shape, model.card.steps
    if steps is None:
        raise StudyError(
            f"the model must be a student of a fixed number of steps; {folder} is not. Pass the "
            "folder of a student, for example runs/latent-small/student-4."
        )
    mask = torch.zeros(B, 1, *x.shape[2:])
    mask[..., x.shape[3] // 2 :] = 1.0
    noise = Noise(0, range(B)).draw(shape, torch.float32, torch.device("cpu"))
    asked = {"folder": str(folder.resolve()), "prompts": PROMPTS, "steps": steps, "w": w}
    asked |= {"strengths": STRENGTHS, "pixels": x / 2 + 0.5, "mask": mask, "noise": noise}
    theirs = draw_in_stock_pipelines(asked)
    calls = {name: found for name, found in theirs.items() if name.endswith("calls")}
    lines = [f"calls of the network, by batch: {calls}"]

    def gap(name: str, z: Tensor) -> str:
        ours = (decode_latents(vae, z) / 2 + 0.5).clamp(0, 1)
        return f"{float((ours - theirs[name]).abs().max()):.1e}"

    cond = encode_prompts(folder, PROMPTS)
    drawn = gap("text", fewstep.sample(model, cond, w=w))
    lines.append(f"text to image, largest difference of pixels in [0, 1]: {drawn}")
    # The image-to-image pipelines draw the autoencoder's noise first, then that of the diffusion.
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        latents = vae.encode(x).latent_dist.sample(generator=draws) * vae.config.scaling_factor
    eps = torch.randn(latents.shape, generator=draws)
    for strength in STRENGTHS:
        grid = model.traits.clock(steps)[steps - int(steps * strength) :]
        z = add_noise(latents, eps, grid[0])
        z = run(get_sampler("deterministic"), model, z, cond, torch.full((B,), w), grid)
        lines.append(f"image to image, strength {strength}: {gap(f'image {strength}', z)}")
    free = gap("image 1.0", fewstep.sample(model, cond, w=w, z=eps))
    lines.append(f"image to image at strength 1 against text to image: {free}")
    latents = encode_images(vae, x)
    references = {
        "the image": x,
        "the autoencoder's own": decode_latents(vae, latents).clamp(-1, 1),
    }
    painted, known = theirs["inpaint"] * 2 - 1, mask.expand_as(x) < 0.5
    for name, reference in references.items():
        error = (painted - reference).abs()[known] / 2
        lines.append(
            f"inpainting, known half, against {name}: mean {float(error.mean()):.3f}, largest "
            f"{float(error.max()):.3f} of [0, 1]"
        )
    factor = x.shape[3] // shape[2]
    ours = fewstep.inpaint(model, latents, mask[..., ::factor, ::factor], cond, w=w)
    kept = (ours - latents)[..., : shape[2] // 2]
    return [*lines, f"inpainting here, known latents: {float(kept.abs().max()):.1e}"]


def draw_in_stock_pipelines(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `studies.stock_drawing.draw` returns for these arguments, in another process."""
    root = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as temporary:
        request, answer = Path(temporary) / "request.pt", Path(temporary) / "answer.pt"
        torch.save(dict(asked), request)
        command = [sys.executable, "-m", "studies.stock_drawing", str(request), str(answer)]
        subprocess.run(command, check=True, cwd=root)
        found: dict[str, Any] = torch.load(answer, weights_only=True)
    return found
