"""Small random-weight models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fewstep
from fewstep.models import Card, Model, UNetConfig, build_unet, with_w_input

TINY = UNetConfig(channels=(8, 16), groups=4, w_dim=32)


def card(**more: object) -> Card:
    return Card.model_validate(
        {
            "fewstep": fewstep.__version__,
            "family": "unet-class",
            "name": "tiny",
            "clock": "native-1024",
            "shape": (1, 8, 8),
            "num_classes": 10,
            "null_class": 10,
            **more,
        }
    )


@pytest.fixture
def teacher() -> Model:
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        unet = build_unet(TINY, (1, 8, 8), 10)
    return Model(unet, card()).eval()


@pytest.fixture
def student(teacher: Model) -> Model:
    """A four-step student whose w input is not zero."""
    unet = with_w_input(teacher, TINY.w_dim)
    weight = unet.time_embedding.cond_proj.weight
    from fewstep.models.w_input import BAND, frequencies

    slow = (frequencies(TINY.w_dim) <= BAND).repeat(2)
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    weight.data.copy_(noise * slow)
    made_for = card(stage=fewstep.Stage("tiny", "teacher", steps=4), w_range=(0.0, 4.0))
    return Model(unet, made_for).eval()


@pytest.fixture(scope="session")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion folder of random weights; not to be changed."""
    from tests.models.pipelines import sd_folder

    return sd_folder(tmp_path_factory.mktemp("stock") / "sd")


@pytest.fixture(scope="session")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SDXL folder of random weights; not to be changed."""
    from tests.models.pipelines import xl_folder

    return xl_folder(tmp_path_factory.mktemp("stock") / "xl")
