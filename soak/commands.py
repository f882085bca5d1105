"""The commands that are disturbed, and what they start from."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import yaml
from PIL import Image

from soak.children import Child

DISK, OUT = "disk", "disk/out"  # folders below that of a round
TRAINING = {"batch_size": 8, "checkpoint_every": 7, "log_every": 3}
RECIPE: dict[str, Any] = {
    "name": "soak",
    "data": {"name": "digits"},
    "network": {"channels": [8, 16], "groups": 4, "w_dim": 32, "dropout": 0.1},
    "teacher": {**TRAINING, "updates": 40},
    "distill": {
        **TRAINING,
        "updates": 20,
        "stages": [
            {"parent": "teacher"},
            {"parent": "stage-one", "steps": 2},
            {"parent": "stage-one", "steps": 2, "stride": 2, "states": "trajectory"},
        ],
    },
    "evaluate": {
        **{"w": [0, 1], "samples": 40, "reference_steps": 4, "teacher_steps": [2]},
        **{"stage_one_steps": [2], "solver_steps": [2], "batch_size": 20},
    },
}
IMAGES = 48
LATENTS: dict[str, Any] = {
    "name": "latents",
    "data": {"name": "images.parquet", "size": 16, "captions": ["a {}", "one {}"]},
    "latents": {"cond": "class", "folder": "parts", "root": OUT, "shard_size": 8, "flip": True},
}


@dataclass(frozen=True)
class Command:
    """A command line, run in a folder where OUT is what it makes.

    once: it refuses a folder that is whole already, and then that folder is its end.
    """

    name: str
    arguments: tuple[str, ...]
    once: bool = False


COMMANDS = (
    Command("train", ("train", "soak.yaml", "--out", OUT)),
    Command("distill", ("distill", "soak.yaml", "--teacher", "{run}/teacher", "--out", OUT)),
    Command("report", ("report", "soak.yaml", "--out", OUT)),
    Command(
        "evaluate",
        ("evaluate", "{run}/student-2", "{run}/student-2-stochastic", "--teacher", "{run}/teacher",
         "--reference-steps", "4", "--w", "0,1", "--samples", "40", "--out", OUT),
    ),
    Command("cache", ("cache", "latents.yaml")),
    Command(
        "features train",
        ("features", "train", "images.parquet", "--size", "16", "--held-out", "0.2", "--epochs",
         "8", "--out", OUT),
        once=True,
    ),
    Command("sample", ("sample", "{run}/student-2", "--count", "4", "--out", OUT)),
)  # fmt: skip


def prepare(home: Path) -> Path:
    """Make what the commands read, in the folder `home`; return the folder of a finished run."""
    home.mkdir(parents=True)
    (home / "soak.yaml").write_text(yaml.safe_dump(RECIPE))
    _images(home / "images.parquet")
    _autoencoder(home / "parts" / "vae")
    settings = {**LATENTS, "data": {**LATENTS["data"], "name": str(home / "images.parquet")}}
    settings["latents"] = {**LATENTS["latents"], "folder": str(home / "parts")}
    (home / "latents.yaml").write_text(yaml.safe_dump(settings))
    for command in ("train", "distill"):
        done = Child([command, "soak.yaml", "--out", "run"], home).ended()
        if done.code:
            raise SystemExit(f"soak: the undisturbed {command} failed:\n{done.err}")
    return home / "run"


def _images(path: Path) -> None:
    draws = np.random.default_rng(0)
    rows: dict[str, list[Any]] = {"image": [], "label": []}
    for k in range(IMAGES):
        pixels = draws.integers(0, 90, (16, 16, 3), dtype=np.uint8)
        pixels[:, :8] += np.uint8(120 * (k % 2))
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        rows["image"].append({"bytes": out.getvalue(), "path": None})
        rows["label"].append(k % 2)
    names = datasets.ClassLabel(names=["cat", "owl"])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def _autoencoder(folder: Path) -> None:
    """Write an autoencoder of weights that no random generator has made."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    draws = np.random.default_rng(1)
    for parameter in vae.parameters():
        values = 0.2 * draws.standard_normal(tuple(parameter.shape))
        parameter.data.copy_(parameter.data.new_tensor(values))
    vae.save_pretrained(folder)


def settle(command: Command, home: Path, run: Path) -> list[str]:
    """Return the arguments of a command that runs in the folder `home`, with its recipe there."""
    (home / DISK).mkdir()
    for name in ("soak.yaml", "latents.yaml"):
        (home / name).write_bytes((run.parent / name).read_bytes())
    images = str(run.parent / "images.parquet")
    filled = (a.format(run=run) for a in command.arguments)
    return [images if a == "images.parquet" else a for a in filled]
