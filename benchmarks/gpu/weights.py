"""Pack models into files that are small enough to travel, and unpack them into model folders.

    python -m benchmarks.gpu.weights results/weights-*.safetensors --out runs/cifar10-h100

Weights are rounded to bf16. A file holds tensors named MODEL/TENSOR, and its metadata the cards and
network configurations of all models.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from fewstep.atomic import atomic_write, sha256
from fewstep.errors import FolderError
from fewstep.folders import save_model
from fewstep.models import Card, Model

LIMIT = 15 * 2**20  # bytes of a file
FORMAT = "fewstep packed weights 1"


def pack(models: Mapping[str, Model], folder: Path, *, limit: int = LIMIT) -> dict[str, Any]:
    """Write the models' weights in bf16 as weights-0.safetensors, ...; return name -> sha256.

    Files of an earlier call are replaced.
    """
    for old in folder.glob("weights-*.safetensors"):
        old.unlink()
    told = {
        name: {"card": m.card.model_dump(mode="json"), "network": _config(m)}
        for name, m in models.items()
    }
    metadata = {"format": FORMAT, "models": json.dumps(told)}
    bins: list[dict[str, Tensor]] = [{}]
    room = limit - len(json.dumps(metadata))
    left = room
    for name, model in models.items():
        for key, value in model.network.state_dict().items():
            tensor = value.detach().to("cpu", torch.bfloat16).contiguous()
            size = 2 * tensor.numel() + 200  # the header's entry
            if size > left and bins[-1]:
                bins.append({})
                left = room
            bins[-1][f"{name}/{key}"] = tensor
            left -= size
    hashes = {}
    for k, tensors in enumerate(bins):
        path = folder / f"weights-{k}.safetensors"
        atomic_write(path, save(tensors, metadata))
        hashes[path.name] = sha256(path)
    return hashes


def unpack(files: Iterable[Path]) -> dict[str, Model]:
    """Return the models of packed files, in float32.

    Raises FolderError where a file is of another kind, or one is missing.
    """
    from diffusers import UNet2DConditionModel

    tensors: dict[str, Tensor] = {}
    told: dict[str, Any] = {}
    for path in sorted(files):
        with safe_open(path, framework="pt") as held:
            metadata = held.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise FolderError(f"{path} must be a file that `pack` wrote. Pass only such files.")
            told = json.loads(metadata["models"])
            tensors |= {key: held.get_tensor(key).float() for key in held.keys()}  # noqa: SIM118
    models = {}
    for name, about in told.items():
        unet = UNet2DConditionModel.from_config(about["network"])
        own = {k.partition("/")[2]: t for k, t in tensors.items() if k.startswith(f"{name}/")}
        missing = unet.state_dict().keys() - own.keys()
        if missing:
            raise FolderError(
                f"the weights of {name} must be whole; {len(missing)} tensors are missing, for "
                f"example {min(missing)}. Pass every weights-*.safetensors file of the run."
            )
        unet.load_state_dict(own)
        models[name] = Model(unet, Card.model_validate(about["card"])).eval()
    return models


def _config(model: Model) -> dict[str, Any]:
    return {k: v for k, v in model.network.config.items() if not k.startswith("_")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model folders")
    given = parser.parse_args()
    for name, model in unpack(given.files).items():
        save_model(model, given.out / name)
        print(given.out / name)


if __name__ == "__main__":
    main()
