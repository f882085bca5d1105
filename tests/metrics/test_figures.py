"""Score, accuracy, diversity and paired distance against brute force and hand-made cases."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewstep.core.seed import generator
from fewstep.data import Digits
from fewstep.errors import DataError, FewstepError, ShapeError
from fewstep.metrics import (
    accuracy,
    class_score,
    nearest_distance,
    paired_rms,
    within_class_variance,
)

law = settings(deadline=None, derandomize=True, max_examples=40)
SEEDS = st.integers(0, 10_000)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator("cpu", seed, "figures"), dtype=torch.float64)


def digits(split: str) -> tuple[Tensor, Tensor]:
    data = Digits(split)
    return data.batch(torch.arange(len(data)))


@law
@given(seed=SEEDS, count=st.integers(1, 30), classes=st.integers(1, 8), sharp=st.floats(0, 20))
def test_score_by_brute_force(seed: int, count: int, classes: int, sharp: float) -> None:
    logits = normal(seed, count, classes) * sharp
    p = logits.softmax(1).tolist()
    mean = [sum(row[k] for row in p) / count for k in range(classes)]
    gain = sum(q * math.log(q / mean[k]) for row in p for k, q in enumerate(row) if q > 0) / count
    assert class_score(logits) == pytest.approx(math.exp(gain), rel=1e-9)
    assert 1 - 1e-9 <= class_score(logits) <= classes + 1e-9


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore`", r"ignore:std\(\)")
def test_score_as_torchmetrics() -> None:
    from torchmetrics.image.inception import InceptionScore

    class Logits(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).double() / 32

    metric = InceptionScore(feature=Logits(), splits=1)
    images = (normal(4, 200, 3, 2, 2) * 40 + 128).clamp(0, 255).byte()
    metric.update(images)
    with torch.random.fork_rng():  # it shuffles by the global generator
        want = float(metric.compute()[0])
    assert class_score(images.flatten(1).double() / 32) == pytest.approx(want, rel=1e-6)


def test_score_at_both_ends() -> None:
    sure = torch.eye(10).repeat(3, 1)
    assert class_score(sure.log()) == pytest.approx(10, rel=1e-12)
    assert class_score(sure[:1].log().repeat(5, 1)) == pytest.approx(1, rel=1e-12)
    assert class_score(torch.zeros(5, 10)) == pytest.approx(1, rel=1e-12)


def test_logarithms_of_probabilities_are_logits() -> None:
    logits = normal(1, 20, 6)
    assert class_score(logits.softmax(1).log()) == pytest.approx(class_score(logits), rel=1e-12)


def test_accuracy_counts() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0], [1.0, 0.0]])
    assert accuracy(logits, torch.tensor([0, 1, 1, 0])) == 0.75


@law
@given(seed=SEEDS, classes=st.integers(1, 5), each=st.integers(2, 6))
def test_variance_by_brute_force(seed: int, classes: int, each: int) -> None:
    """Classes of different sizes count the same."""
    labels = torch.cat([torch.full((each + k,), 7 * k) for k in range(classes)])
    x = normal(seed, len(labels), 2, 3)
    totals = []
    for k in range(classes):
        rows = x[labels == 7 * k].flatten(1).tolist()
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        squares = sum((v - m) ** 2 for row in rows for v, m in zip(row, means, strict=True))
        totals.append(squares / (len(rows) - 1))
    want = sum(totals) / classes
    assert within_class_variance(x, labels) == pytest.approx(want, rel=1e-9)


def test_variance_of_the_digits_and_of_class_averages() -> None:
    x, labels = digits("train")
    assert within_class_variance(x, labels) == pytest.approx(10.9, abs=0.05)
    assert within_class_variance(*digits("held-out")) == pytest.approx(11.0, abs=0.05)
    averages = torch.stack([x[labels == k].mean(0) for k in range(10)])
    assert within_class_variance(averages[labels], labels) == 0


@law
@given(seed=SEEDS, count=st.integers(1, 9), known=st.integers(1, 9), chunk=st.integers(1, 10))
def test_nearest_by_brute_force(seed: int, count: int, known: int, chunk: int) -> None:
    samples, train = normal(seed, count, 1, 2, 3), normal(seed + 1, known, 1, 2, 3)
    want = sum(
        min(math.sqrt(float((s - t).square().mean())) for t in train) for s in samples
    ) / len(samples)
    assert nearest_distance(samples, train, chunk=chunk) == pytest.approx(want, rel=1e-12)


def test_nearest_of_the_digits_and_of_copies() -> None:
    train = digits("train")[0]
    assert nearest_distance(digits("held-out")[0], train) == pytest.approx(0.262, abs=0.001)
    assert nearest_distance(train[::7], train) == 0
    # Small distances must survive: through a matrix product this would be lost in float32.
    assert nearest_distance(train[::7].double() + 1e-7, train) == pytest.approx(1e-7, rel=1e-6)


@law
@given(seed=SEEDS, count=st.integers(1, 9), shift=st.floats(-2, 2))
def test_paired_rms(seed: int, count: int, shift: float) -> None:
    a, b = normal(seed, count, 3, 2), normal(seed + 1, count, 3, 2)
    flat = zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)
    want = math.sqrt(sum((p - q) ** 2 for p, q in flat) / a.numel())
    assert paired_rms(a, b) == pytest.approx(want, rel=1e-9)
    assert paired_rms(a, b) == paired_rms(b, a)
    assert paired_rms(a, a) == 0
    assert paired_rms(a + shift, a) == pytest.approx(abs(shift), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: class_score(torch.zeros(4)), ShapeError, "must be \\(B, K\\)"),
        (lambda: class_score(torch.zeros(0, 4)), DataError, "0 samples"),
        (lambda: accuracy(torch.zeros(3, 4), torch.zeros(2)), ShapeError, "take \\(3,\\)"),
        (
            lambda: within_class_variance(torch.zeros(3, 4), torch.tensor([0, 0, 5])),
            DataError,
            "class 5 has 1 sample;.* at least 2",
        ),
        (
            lambda: within_class_variance(torch.zeros(0, 4), torch.zeros(0)),
            DataError,
            "there are no samples",
        ),
        (lambda: within_class_variance(torch.zeros(3, 4), torch.zeros(4)), ShapeError, "\\(3,\\)"),
        (lambda: nearest_distance(torch.zeros(2, 4), torch.zeros(2, 5)), ShapeError, "one shape"),
        (lambda: nearest_distance(torch.zeros(2, 4), torch.zeros(0, 4)), DataError, "at least one"),
        (lambda: paired_rms(torch.zeros(2, 4), torch.zeros(3, 4)), ShapeError, "same noise"),
        (lambda: paired_rms(torch.zeros(0, 4), torch.zeros(0, 4)), DataError, "at least 1"),
    ],
)
def test_what_cannot_be_measured(
    call: Callable[[], float], error: type[FewstepError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
