"""Draw with a student that was exported to ONNX: numpy and onnxruntime, neither torch nor fewstep.

    fewstep export runs/demo/student-4 --to onnx --out student-4-onnx
    python examples/onnx_sampler.py student-4-onnx --w 2 --classes 0-9 --out digits.png

All that a sampler must know is in the metadata of model.onnx: the timesteps at which the network
is called, the angles of a state there, and what the network predicts. A state is
z = cos(angle) x + sin(angle) noise, and a step turns it from one angle to the next (DDIM).

Text-to-image models are given embeddings of prompts, made once with fewstep:

    cond = fewstep.folders.encode_prompts("student-4", ["a cat", "a dog"])
    np.savez("prompts.npz", encoder_hidden_states=cond)   # the names of the network's inputs
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from PIL import Image

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


def opened(path: Path) -> onnxruntime.InferenceSession:
    """Return a network, on the first of the devices that this onnxruntime was built for."""
    return onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())


def metadata_of(session: onnxruntime.InferenceSession) -> dict[str, Any]:
    """Return the metadata of a network that fewstep exported."""
    found = session.get_modelmeta().custom_metadata_map
    return {key: json.loads(value) for key, value in found.items()}


def scale_of(prediction: str, angle: float) -> float:
    """Return the factor of what the network is given: in rectified flow, y = (1 - s) x + s eps."""
    return 1 / (math.sin(angle) + math.cos(angle)) if prediction == "flow" else 1.0


def velocity(prediction: str, out: Array, z: Array, angle: float) -> Array:
    """Return v = cos(angle) eps - sin(angle) x of what the network predicts."""
    c, s = math.cos(angle), math.sin(angle)
    if prediction == "epsilon":
        return (out - s * z) / c
    if prediction == "sample":
        return (c * z - out) / s
    if prediction == "flow":  # u = eps - x
        return ((c - s) * z + out) / (c + s)
    return out


def sample(
    session: onnxruntime.InferenceSession,
    z: Array,
    conditions: dict[str, Array],
    w: float | None = None,
    steps: int | None = None,
) -> Array:
    """Return what the student draws from the noise z (B, C, H, W), by one call per step.

    w: of a network with that input. steps: of a student for any number of them.
    """
    metadata = metadata_of(session)
    if metadata["sampler"] not in (None, "deterministic"):
        raise SystemExit(
            f"this sampler is deterministic; the student is for {metadata['sampler']}."
        )
    count = str(metadata["steps"] if steps is None else steps)
    if count not in metadata["grids"]:
        raise SystemExit(f"--steps must be one of {', '.join(metadata['grids'])}, got {count}.")
    given = dict(conditions)
    if metadata["w_range"] is not None:
        low, high = metadata["w_range"]
        if w is None or not low <= w <= high:
            raise SystemExit(f"--w must lie in [{low:g}, {high:g}], got {w}.")
        given["w"] = np.full(len(z), w, np.float32)
    elif w is not None:
        raise SystemExit(f"--w must be left out: w = {metadata['w']:g} is fixed in the weights.")
    grid, prediction = metadata["grids"][count], metadata["prediction"]
    angles = grid["angles"]
    for timestep, angle, following in zip(grid["timesteps"], angles, angles[1:], strict=False):
        given["timestep"] = np.full(len(z), timestep, np.float32)
        given["sample"] = (z * scale_of(prediction, angle)).astype(np.float32)
        (out,) = session.run(None, given)
        v, turn = velocity(prediction, out, z, angle), angle - following
        z = math.cos(turn) * z - math.sin(turn) * v
    return z.astype(np.float32)


def classes(text: str) -> Array:
    """Return the class ids of "0,3,5-9"."""
    ends = [part.split("-") for part in text.split(",")]
    ids = [i for pair in ends for i in range(int(pair[0]), int(pair[-1]) + 1)]
    return np.array(ids, np.int64)


def grid_of(images: Array, columns: int) -> Image.Image:
    """Return images (B, C, H, W) in [-1, 1] side by side."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    page = np.zeros((rows * height, columns * width, channels), np.uint8)
    for k, image in enumerate(np.clip(images * 127.5 + 127.5, 0, 255).round().astype(np.uint8)):
        y, x = k // columns * height, k % columns * width
        page[y : y + height, x : x + width] = image.transpose(1, 2, 0)
    return Image.fromarray(page[..., 0] if channels == 1 else page)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw with a student that was exported to ONNX.")
    parser.add_argument("folder", type=Path, help="folder of the export")
    parser.add_argument("--w", type=float, help="guidance weight, unless it is in the weights")
    parser.add_argument("--classes", default="0-9", help="class ids, for example 0,3,5-9")
    parser.add_argument("--conditions", type=Path, help=".npz file of embeddings, by input name")
    parser.add_argument("--noise", type=Path, help=".npy file to start from, in place of --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of a student for any number of steps")
    parser.add_argument("--out", type=Path, default=Path("onnx.png"), help="PNG or .npy file")
    parser.add_argument("--columns", type=int, default=10)
    given = parser.parse_args()

    session = opened(given.folder / "model.onnx")
    metadata = metadata_of(session)
    if given.conditions is None:
        if not metadata["num_classes"]:
            raise SystemExit("this model draws prompts: give their embeddings by --conditions.")
        conditions = {"class_labels": classes(given.classes)}
    else:
        conditions = dict(np.load(given.conditions))
    count = len(next(iter(conditions.values())))
    if given.noise is None:
        draws = np.random.default_rng(given.seed)
        z = draws.standard_normal((count, *metadata["shape"]), np.float32)
    else:
        z = np.load(given.noise)
    images = sample(session, z, conditions, given.w, given.steps)
    if metadata["latents"] is not None and metadata["latents"]["decoder"] is not None:
        decoder = opened(given.folder / metadata["latents"]["decoder"])
        (images,) = decoder.run(None, {"latents": images})
    if given.out.suffix == ".npy":
        np.save(given.out, images)
    elif metadata["latents"] is not None and metadata["latents"]["decoder"] is None:
        raise SystemExit("these are latents, and there is no decoder: give --out a .npy file.")
    else:
        grid_of(images, given.columns).save(given.out)


if __name__ == "__main__":
    main()
