"""Kernel distance, precision and recall against brute force, torchmetrics and known clouds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from fewstep.core.seed import generator
from fewstep.errors import DataError, ShapeError
from fewstep.metrics import class_score, kernel_distance, nearest_distance, precision_recall

law = settings(deadline=None, derandomize=True, max_examples=25)
SEEDS = st.integers(0, 10_000)


def cloud(seed: int, count: int, dim: int, shift: float = 0.0) -> Tensor:
    g = generator("cpu", seed, "cloud")
    return torch.randn(count, dim, generator=g, dtype=torch.float64) + shift


class Flat(nn.Module):
    """Features of torchmetrics that are the pixels themselves."""

    num_features = 6

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_kernel_distance_is_that_of_torchmetrics() -> None:
    a, b = cloud(0, 50, 6), cloud(1, 50, 6, 0.3)
    theirs = KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=50, normalize=False)
    theirs.set_dtype(torch.float64)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    mean, _ = theirs.compute()
    assert kernel_distance(a, b) == pytest.approx(float(mean), rel=1e-5)


def test_class_score_is_that_of_torchmetrics() -> None:
    logits = 3 * cloud(0, 200, 6)
    theirs = InceptionScore(feature=Flat(), splits=1)
    theirs.update(logits.float())
    mean, _ = theirs.compute()
    assert class_score(logits.float()) == pytest.approx(float(mean), rel=1e-5)


@law
@given(SEEDS, st.integers(2, 30), st.integers(2, 30), st.integers(1, 7))
def test_kernel_distance_is_the_sum_over_pairs(seed: int, m: int, n: int, chunk: int) -> None:
    a, b = cloud(seed, m, 4), cloud(seed + 1, n, 4, 0.5)

    def mean(x: Tensor, y: Tensor, *, own: bool) -> float:
        pairs = [
            float((x[i] @ y[j] / 4 + 1) ** 3)
            for i in range(len(x))
            for j in range(len(y))
            if not own or i != j
        ]
        return sum(pairs) / len(pairs)

    expected = mean(a, a, own=True) + mean(b, b, own=True) - 2 * mean(a, b, own=False)
    assert kernel_distance(a, b, chunk=chunk) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_kernel_distance_is_about_nothing_between_alike_clouds() -> None:
    assert abs(kernel_distance(cloud(0, 2000, 8), cloud(1, 2000, 8))) < 0.01
    assert kernel_distance(cloud(0, 2000, 8), cloud(1, 2000, 8, 0.5)) > 0.5


@law
@given(SEEDS, st.integers(5, 25), st.integers(5, 25), st.integers(1, 7))
def test_precision_and_recall_by_brute_force(seed: int, m: int, n: int, chunk: int) -> None:
    a, b = cloud(seed, m, 3), cloud(seed + 1, n, 3, 0.7)

    def covered(points: Tensor, members: Tensor) -> float:
        hit = 0
        for p in points:
            for i, q in enumerate(members):
                others = sorted(float((q - r).norm()) for j, r in enumerate(members) if j != i)
                if float((p - q).norm()) <= others[2]:
                    hit += 1
                    break
        return hit / len(points)

    precision, recall = precision_recall(a, b, chunk=chunk)
    assert precision == pytest.approx(covered(a, b))
    assert recall == pytest.approx(covered(b, a))


def test_collapse_keeps_precision_and_loses_recall() -> None:
    real = cloud(0, 500, 4)
    few = real[:5].repeat(100, 1) + 1e-3 * cloud(1, 500, 4)
    precision, recall = precision_recall(few, real)
    assert precision > 0.99
    assert recall < 0.1
    far = precision_recall(real + 100, real)
    assert far == (0.0, 0.0)


@law
@given(SEEDS, st.integers(1, 20), st.integers(1, 30))
def test_nearest_distance_by_brute_force(seed: int, m: int, n: int) -> None:
    a, b = cloud(seed, m, 5), cloud(seed + 1, n, 5)
    b[0] = a[0]
    expected = torch.stack([(b - x).square().mean(1).sqrt().min() for x in a]).mean()
    assert nearest_distance(a, b, chunk=3) == pytest.approx(float(expected), rel=1e-12, abs=1e-15)


def test_what_cannot_be_compared_is_refused() -> None:
    a = cloud(0, 10, 4)
    for distance in (kernel_distance, precision_recall):
        with pytest.raises(ShapeError, match=r"\(10, 4\) and \(10, 3\)"):
            distance(a, a[:, :3])
        with pytest.raises(DataError, match=r"^1 (and|samples)"):
            distance(a[:1], a)
