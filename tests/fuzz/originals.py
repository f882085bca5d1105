"""What the fuzz changes: tiny recipes, model folders and data folders, each made once."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image
from tests.models.pipelines import dit_folder, sd_folder, w_student

from fewstep.cli.main import main
from fewstep.folders import save_model

TRAINING = {"updates": 1, "batch_size": 2, "log_every": 1, "checkpoint_every": 1}
RECIPE: dict[str, Any] = {
    "name": "fuzz",
    "seed": 0,
    "data": {"name": "digits", "flip": False, "crop": 0, "held_out": 0.05},
    "network": {"channels": [4], "groups": 2, "w_dim": 16, "dropout": 0.0},
    "teacher": {**TRAINING, "lr": 1e-3, "warmup": 0, "ema": 0.9, "dropout": 0.1},
    "distill": {
        **TRAINING,
        "w": [0, 4],
        "stages": [
            {"parent": "teacher", "updates": 1},
            {"parent": "stage-one", "steps": 2, "substeps": 2},
            {"parent": "student-2", "steps": 1, "stride": 1, "name": "last"},
        ],
    },
    "evaluate": {"w": [0, 1], "samples": 4, "reference_steps": 2, "teacher_steps": [1]},
}
PICTURES = {**RECIPE, "data": {"name": "data", "size": 8, "channels": 1, "held_out": 0.2}}
CAPTIONS = {
    **RECIPE,
    "data": {"name": "digits", "captions": ["a {}"]},
    "latents": {"cond": "prompt", "shard_size": 2000},
}


@dataclass(frozen=True, repr=False)
class World:
    """The originals."""

    models: dict[str, Path]
    data: dict[str, Path]


def runs(home: Path) -> Path:
    """Return the folder of a finished run of RECIPE, made below home."""
    (home / "fuzz.yaml").write_text(yaml.safe_dump(RECIPE))
    for command in ("train", "distill"):
        assert main([command, str(home / "fuzz.yaml"), "--out", str(home / "run")]) == 0
    return home / "run"


def models(home: Path) -> dict[str, Path]:
    """Return folders of every family, by name."""
    run = runs(home)
    sd = sd_folder(home / "sd")
    save_model(w_student(sd, 2), home / "sd-student")
    names = ("teacher", "stage-one", "student-2")
    return {
        **{name: run / name for name in names},
        "sd": sd,
        "sd-student": home / "sd-student",
        "dit": dit_folder(home / "dit", classes=2),
    }


def picture(seed: int, mode: str = "L", size: tuple[int, int] = (8, 8)) -> bytes:
    """Return a PNG of noise."""
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, *channels), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def classes(folder: Path) -> Path:
    """A folder of images with a folder for each class."""
    for k in range(8):
        path = folder / ("cat", "dog")[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(k))
    return folder


def _listed(folder: Path) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(8):
        (folder / f"{k}.png").write_bytes(picture(k))
    return [{"file_name": f"{k}.png", "label": ("cat", "dog")[k % 2]} for k in range(8)]


def jsonl(folder: Path) -> Path:
    """A folder of images with metadata.jsonl."""
    lines = [json.dumps(row) + "\n" for row in _listed(folder)]
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def csv(folder: Path) -> Path:
    """A folder of images with metadata.csv."""
    rows = [f"{row['file_name']},{row['label']}\n" for row in _listed(folder)]
    (folder / "metadata.csv").write_text("file_name,label\n" + "".join(rows))
    return folder


def captions(folder: Path) -> Path:
    """A folder of images with a text beside each."""
    for row in _listed(folder):
        (folder / row["file_name"]).with_suffix(".txt").write_text(f"a {row['label']}")
    return folder


def parquet(folder: Path) -> Path:
    """A folder with a table of images."""
    folder.mkdir(parents=True, exist_ok=True)
    table = {"image": [picture(k) for k in range(8)], "label": [k % 2 for k in range(8)]}
    pq.write_table(pa.table(table), folder / "data.parquet")
    return folder


DATA: dict[str, Callable[[Path], Path]] = {
    f.__name__: f for f in (classes, jsonl, csv, captions, parquet)
}


def copied(source: Path, to: Path) -> Path:
    """Copy a folder that a case will change."""
    return Path(shutil.copytree(source, to, symlinks=True))
