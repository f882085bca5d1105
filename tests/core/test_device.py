"""The device is the one that was asked for, or an error; never another in silence."""

import pytest
import torch

from fewstep.core.device import choose_device
from fewstep.errors import RangeError


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_without_a_name_the_gpu_is_used_where_there_is_one(two_gpus):
    assert choose_device() == "cuda"
    assert [choose_device(d) for d in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]


def test_without_a_gpu_the_cpu_is_used(no_gpu):
    assert choose_device() == choose_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:3"])
def test_a_gpu_that_is_not_there_is_refused(no_gpu, name):
    with pytest.raises(RangeError, match="no GPU"):
        choose_device(name)


def test_an_index_past_the_last_gpu_is_refused(two_gpus):
    with pytest.raises(RangeError, match="2 GPUs"):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    "name", ["", "gpu", "x", "mps", "meta", "CPU", "cuda:", "cuda:-1", "cuda:²"]
)
def test_other_names_are_refused(two_gpus, name):
    with pytest.raises(RangeError, match="must be"):
        choose_device(name)
