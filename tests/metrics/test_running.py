"""Figures of samples that come batch by batch are those of all at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.core.seed import generator
from fewstep.metrics import (
    FeatureOutput,
    Reference,
    Rows,
    cell,
    class_score,
    kernel_distance,
    measure,
    rows,
    within_class_variance,
)
from fewstep.metrics.diversity import Nearest, RunningVariance
from fewstep.metrics.frechet import RunningMoments, moments


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator("cpu", seed, "running"))


class Quarters:
    """Four features of an image, that are its logits too."""

    name, sha256, num_classes = "quarters", "0", 4

    def __call__(self, x: Tensor) -> FeatureOutput:
        quarters = x.flatten(1).unflatten(1, (4, -1)).mean(-1)
        return FeatureOutput(quarters, quarters)


@pytest.mark.parametrize("at_once", [1, 7, 40])
def test_figures_do_not_depend_on_the_batches(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    reference = Reference.build(normal(0, 50, 1, 4, 4), Quarters())
    x, labels = normal(1, 60, 1, 4, 4), torch.arange(60) % 4
    shared = {
        "features": Quarters(),
        "reference": reference,
        "teacher_samples": x + 0.1,
        "teacher_moments": moments(Quarters()(normal(3, 50, 1, 4, 4)).features),
    }
    whole = measure(x, labels, **shared)
    monkeypatch.setattr(cell, "AT_ONCE", at_once)
    assert measure(x, labels, **shared) == pytest.approx(whole, rel=1e-12)
    assert None not in whole.values()


def test_moments_are_merged_without_cancelling() -> None:
    x = normal(2, 300, 5).double() + 1e6
    running = RunningMoments()
    for part in x.split(37):
        running.add(part)
    got, cov = running.moments(), np.cov(x.numpy(), rowvar=False)
    np.testing.assert_allclose(got.mean, x.numpy().mean(0), rtol=1e-14)
    np.testing.assert_allclose(got.cov, cov, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(moments(x).cov, cov, rtol=1e-8, atol=1e-9)


def test_classes_may_come_in_any_batch() -> None:
    x, labels = normal(3, 40, 3), torch.tensor([7, 2, 2, 9, 7] * 8)
    plain = torch.stack([x.double()[labels == k].var(dim=0).sum() for k in (2, 7, 9)]).mean()
    assert within_class_variance(x, labels) == pytest.approx(float(plain), rel=1e-12)
    running = RunningVariance(labels)
    for part in torch.arange(40).split(3):
        running.add(x[part], labels[part])
    assert running.value() == pytest.approx(float(plain), rel=1e-12)


@pytest.mark.parametrize("in_memory", [0, 2**23])
def test_rows_come_back_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr(rows, "IN_MEMORY", in_memory or 1)
    x, other = normal(4, 90, 6), normal(5, 70, 6)
    with Rows(tmp_path) as kept:
        for part in x.split(13):
            kept.append(part)
        assert (kept.shape, kept.ndim, len(kept)) == ((90, 6), 2, 90)
        assert torch.equal(kept[20:50], x[20:50])
        assert torch.equal(kept[80:200], x[80:])
        assert kept[90:].shape == (0, 6)
        got = kernel_distance(kept, other, chunk=16)
    assert got == pytest.approx(kernel_distance(x, other), rel=1e-9)
    assert not list(tmp_path.iterdir())


def test_the_score_is_the_mean_divergence() -> None:
    p = normal(6, 30, 4).double().softmax(1)
    apart = (p * (p.log() - p.mean(0).log())).sum(1).mean().exp()
    assert class_score(p.log()) == pytest.approx(float(apart), rel=1e-12)


def test_training_images_go_to_a_gpu_only_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    images, places = torch.zeros(10, 4, dtype=torch.float64), []

    def to(x: Tensor, where: object) -> Tensor:
        places.append(where)
        return x

    monkeypatch.setattr(torch.Tensor, "to", to)
    for free, place in ((2 * 10 * 4 * 8 - 1, "cpu"), (2 * 10 * 4 * 8, "cuda")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 0))
        Nearest(images, torch.device("cuda"))
        assert places[-2] == torch.device(place)


def test_training_images_are_laid_out_once() -> None:
    reference = Reference.build(normal(0, 20, 1, 4, 4), Quarters())
    device = torch.device("cpu")
    assert reference.nearest(device) is reference.nearest(device)
