"""Small models of random weights, as a user would open them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tests.models.conftest import TINY, card
from tests.models.pipelines import sd_folder, w_student

import fewstep
from fewstep.models import Model, build_unet

# As `fewstep play` sets it; Gradio reads it when it is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of ten classes, of random weights."""
    folder = tmp_path_factory.mktemp("digits")
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        teacher = Model(build_unet(TINY, (1, 8, 8), 10), card(name="teacher")).eval()
    fewstep.save_model(teacher, folder / "teacher")
    for name, steps, direction in (("student-4", 4, "decode"), ("encoder-4", 4, "encode")):
        fewstep.save_model(w_student(folder / "teacher", steps, direction), folder / name)
    return folder


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of prompts, of latents and random weights."""
    folder = tmp_path_factory.mktemp("words")
    sd_folder(folder / "teacher")
    fewstep.save_model(w_student(folder / "teacher", 4), folder / "student-4")
    return folder
