"""What all tests share: no network, one thread per process, and the same hypotheses every time."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator

# Before torch is imported. pytest-xdist takes the cores.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from tests.forks import Forks
from torch import Tensor

torch.set_num_threads(1)
# No deadline and no check of speed: a busy machine must not fail a test.
hypothesis.settings.register_profile(
    "fewstep",
    database=None,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("fewstep")


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Start commands in processes of their own, quickly."""
    server = Forks()
    yield server
    server.close()


@pytest.fixture(scope="session")
def _trained() -> dict[tuple[str, int], dict[str, Tensor]]:
    return {}


@pytest.fixture(scope="module")
def trained_once(_trained: dict[tuple[str, int], dict[str, Tensor]]) -> Iterator[None]:
    """Train the features of the digits once; where they are needed again, copy their weights."""
    # The package has a function of the same name.
    module = importlib.import_module("fewstep.metrics.digits_features")

    def train(x: Tensor, labels: Tensor, seed: int) -> dict[str, Tensor]:
        key = (module._hash(x, labels), seed)
        if key not in _trained:
            _trained[key] = real(x, labels, seed)
        return {name: weight.clone() for name, weight in _trained[key].items()}

    real = module._train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_train", train)
        yield
