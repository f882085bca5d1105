"""The studies of latents: the autoencoder alone, and stock pipelines beside fewstep."""

from __future__ import annotations

import io
import runpy
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from studies.common import StudyError
from tests.models.pipelines import sd_folder, w_student

from fewstep.data import DataConfig, open_dataset
from fewstep.folders import save_model
from fewstep.metrics import train_features
from studies import autoencoder, stock_pipelines

STEPS = 4


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("latents")


@pytest.fixture(autouse=True)
def _cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(home / "cache"))


def write_images(path: Path) -> Path:
    """Write bright and dark noise of 16 x 16, in turn, as parquet; return the path."""
    draws = np.random.default_rng(0)
    rows: dict[str, list[Any]] = {"image": [], "label": []}
    for k in range(120):
        pixels = draws.integers(0, 90, (16, 16, 3), dtype=np.uint8) + np.uint8(150 * (k % 2))
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        rows["image"].append({"bytes": out.getvalue(), "path": None})
        rows["label"].append(k % 2)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "bright"])}
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def images(home: Path) -> Path:
    return write_images(home / "images.parquet")


@pytest.fixture(scope="module")
def parts(home: Path) -> Path:
    """A Stable Diffusion folder whose sampling starts in pure noise."""
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return sd_folder(home / "parts", prediction_type="v_prediction", **zero)


def test_a_random_autoencoder_is_far_from_the_training_images(
    images: Path, parts: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = DataConfig(name=str(images), size=16, held_out=0.05)
    train, held_out = open_dataset(config, "train"), open_dataset(config, "held-out")
    train_features(home / "features", train, held_out, name="small", epochs=1, progress=False)
    arguments = [str(parts), str(images), str(home / "features")]
    autoencoder.main([*arguments, "--size", "16", "--count", "100"])
    own, decoded = capsys.readouterr().out.splitlines()
    assert own.startswith("100 training images: fd_small ")
    assert decoded.startswith("100 through the autoencoder: fd_small ")
    distances = [float(line.split()[-3].rstrip(",")) for line in (own, decoded)]
    assert distances[0] < 0.1 * distances[1]


def in_this_process(command: list[str], *, check: bool, cwd: Path) -> None:
    """Run `python -m MODULE ...` here; it sets sys.modules["fewstep"], which is put back."""
    assert check
    assert (cwd / "studies" / "stock_drawing.py").is_file()
    assert command[:2] == [sys.executable, "-m"]
    kept, before = sys.modules["fewstep"], sys.argv
    sys.argv = command[2:]
    try:
        runpy.run_module(command[2], run_name="__main__")
        assert sys.modules["fewstep"] is None
    finally:
        sys.argv, sys.modules["fewstep"] = before, kept


@pytest.mark.filterwarnings("ignore:.*tokens and are cut")
def test_stock_pipelines_draw_what_fewstep_draws(
    images: Path,
    parts: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    student = home / "student"
    save_model(w_student(parts, steps=STEPS), student)
    monkeypatch.setattr(stock_pipelines.subprocess, "run", in_this_process)
    stock_pipelines.main([str(student), str(images), "--w", "2", "--size", "16"])
    calls, *lines = capsys.readouterr().out.splitlines()
    assert "'text: calls': [4, 4, 4, 4]" in calls
    assert "'image 0.5: calls': [4, 4]" in calls
    gaps = {name: float(value) for name, _, value in (line.rpartition(": ") for line in lines[:4])}
    assert list(gaps) == [
        "text to image, largest difference of pixels in [0, 1]",
        "image to image, strength 1.0",
        "image to image, strength 0.5",
        "image to image at strength 1 against text to image",
    ]
    assert max(gaps.values()) < 1e-4
    assert lines[4].startswith("inpainting, known half, against the image: mean 0.")
    assert lines[6] == "inpainting here, known latents: 0.0e+00"


def test_a_teacher_is_no_student(parts: Path, images: Path) -> None:
    with pytest.raises(StudyError, match="must be a student of a fixed number of steps"):
        stock_pipelines.main([str(parts), str(images), "--size", "16"])
