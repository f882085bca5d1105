"""Tiny images, features and models for the tests of measuring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import fewstep
from fewstep.core.denoiser import Guided
from fewstep.data import DataConfig, open_dataset
from fewstep.folders import save_model
from fewstep.metrics import train_features
from fewstep.models import Card, Model, UNetConfig, build_unet, student_of
from fewstep.models.clocks.native import CLOCK
from fewstep.models.families.unet_class import UNET_CLASS

SIZE = 8


def image_folder(path: Path, each: int = 12, classes: tuple[str, ...] = ("cat", "owl")) -> Path:
    """A folder of images with a folder for each class."""
    draws = np.random.default_rng(0)
    for k, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for i in range(each):
            pixels = draws.integers(0, 100, (SIZE, SIZE, 3)) + 50 * k
            Image.fromarray(pixels.astype(np.uint8)).save(path / name / f"{i}.png")
    return path


def features_folder(path: Path, images: Path) -> Path:
    """A classifier that has seen the images once."""
    data = open_dataset(DataConfig(name=str(images), held_out=0.0))
    train_features(path, data, None, name="tiny", epochs=1, progress=False)
    return path


def teacher(seed: int = 0, classes: int = 2) -> Model:
    """A class-conditional network of random weights, without a hash."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        unet = build_unet(UNetConfig(channels=(8,), groups=4, w_dim=16), (3, SIZE, SIZE), classes)
    card = Card(
        fewstep=fewstep.__version__,
        family=UNET_CLASS.name,
        name="teacher",
        clock=CLOCK,
        shape=(3, SIZE, SIZE),
        num_classes=classes,
        null_class=classes,
    )
    return Model(unet, card).eval()


def guided(model: Model) -> Guided:
    return Guided(model, model.null_cond)


def student(parent: Model, folder: Path, steps: int = 4, name: str | None = None) -> Path:
    """A saved student that nothing has trained."""
    stage = fewstep.Stage(name or f"student-{steps}", "teacher", updates=1, steps=steps)
    save_model(student_of(guided(parent), stage, (0.0, 4.0), w_dim=16), folder)
    return folder
