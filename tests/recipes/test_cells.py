"""What a measured cell keeps on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fewstep
from fewstep.core.denoiser import Guided
from fewstep.data import DataConfig
from fewstep.models import Card, UNetConfig, UNetModel, build_unet
from fewstep.models.native import CLOCK
from fewstep.models.unet_class import FAMILY
from fewstep.recipes import evaluate
from fewstep.recipes.evaluate import Evaluation


@pytest.fixture
def teacher() -> Guided:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        unet = build_unet(UNetConfig(channels=(8, 16), groups=4, w_dim=32), (1, 8, 8), 10)
    card = Card(
        fewstep=fewstep.__version__,
        family=FAMILY,
        name="teacher",
        stage="teacher",
        clock=CLOCK,
        shape=(1, 8, 8),
        num_classes=10,
        null_class=10,
        weights_sha256="of random weights",
    )
    model = UNetModel(unet, card).eval()
    return Guided(model, model.null_cond)


def test_a_reference_keeps_all_images_and_others_the_first(
    teacher: Guided, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "KEPT", 7)
    evaluation = Evaluation(DataConfig(name="digits"), tmp_path, samples=20)
    reference = evaluation.cell("teacher", teacher, w=1.0, steps=4)
    other = evaluation.cell("teacher", teacher, w=1.0, steps=2, teacher=reference)
    assert (len(reference.images), len(other.images)) == (20, 7)
    # Measured on all of them, and not on what is kept.
    drawn = fewstep.sample(teacher, evaluation.labels, w=1.0, steps=2)
    apart = (drawn.double() - reference.images.double()).square().mean().sqrt()
    assert other.row["rms_to_teacher"] == pytest.approx(float(apart), rel=1e-6)
    assert torch.allclose(other.images, drawn[:7], atol=1e-5)
    again = evaluation.cell("teacher", teacher, w=1.0, steps=2, teacher=reference)
    assert again.row == other.row


def test_the_training_images_are_seen_once(
    teacher: Guided, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataConfig(name="digits")
    built: list[int] = []
    plain = evaluate.Reference.build

    def counted(images: torch.Tensor, features: evaluate.Features) -> evaluate.Reference:
        built.append(len(images))
        return plain(images, features)

    monkeypatch.setattr(evaluate.Reference, "build", counted)
    first = Evaluation(data, tmp_path, samples=20).cell("teacher", teacher, w=1.0, steps=2).row
    (path,) = (tmp_path / "reference").glob("*.safetensors")
    (tmp_path / "results.sqlite").unlink()
    again = Evaluation(data, tmp_path, samples=20).cell("teacher", teacher, w=1.0, steps=2).row
    assert len(built) == 1
    assert {k: v for k, v in again.items() if k != "seconds_per_image"} == {
        k: v for k, v in first.items() if k != "seconds_per_image"
    }
    path.write_bytes(path.read_bytes()[:1000])  # cut short: seen anew
    (tmp_path / "results.sqlite").unlink()
    Evaluation(data, tmp_path, samples=20).cell("teacher", teacher, w=1.0, steps=2)
    assert len(built) == 2
