"""The Fréchet distance against closed forms, scipy, torchmetrics, and its own invariances."""

from __future__ import annotations

import math

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewstep.core.seed import generator
from fewstep.errors import DataError, NonFiniteError, ShapeError
from fewstep.metrics import Moments, frechet_distance, moments

law = settings(deadline=None, derandomize=True, max_examples=40)
SEEDS = st.integers(0, 10_000)


def cloud(seed: int, count: int, dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Correlated features with a mean: (count, dim)."""
    rng = generator("cpu", seed, "cloud")
    mix = torch.randn(dim, dim, generator=rng, dtype=dtype)
    shift = torch.randn(dim, generator=rng, dtype=dtype)
    return torch.randn(count, dim, generator=rng, dtype=dtype) @ mix + shift


def by_scipy(a: Tensor, b: Tensor) -> float:
    means = [x.mean(0).numpy() for x in (a, b)]
    covs = [x.T.cov().reshape(x.shape[1], -1).numpy() for x in (a, b)]
    root = scipy.linalg.sqrtm(covs[0] @ covs[1])
    shift = means[0] - means[1]
    return float(shift @ shift + covs[0].trace() + covs[1].trace() - 2 * root.real.trace())


def rotation(seed: int, dim: int) -> Tensor:
    rng = generator("cpu", seed, "rotation")
    turn: Tensor = torch.linalg.qr(torch.randn(dim, dim, generator=rng, dtype=torch.float64))[0]
    return turn


@pytest.mark.parametrize(("seed", "dim"), [(0, 1), (1, 2), (2, 8), (3, 64)])
def test_as_scipy(seed: int, dim: int) -> None:
    a, b = cloud(seed, 300, dim), cloud(seed + 100, 200, dim)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(by_scipy(a, b), rel=1e-8)


def test_as_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Pixels(torch.nn.Module):
        num_features = 12

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).double()

    metric = FrechetInceptionDistance(feature=Pixels(), normalize=True).set_dtype(torch.float64)
    images = [cloud(seed, n, 12).sigmoid().view(n, 3, 2, 2) for seed, n in ((1, 250), (2, 180))]
    metric.update(images[0], real=True)
    metric.update(images[1], real=False)
    seen = [moments(x.flatten(1)) for x in images]
    assert frechet_distance(*seen) == pytest.approx(float(metric.compute()), rel=1e-6)


@law
@given(
    parts=st.lists(
        st.tuples(*[st.floats(-3, 3)] * 2, *[st.floats(0, 4)] * 2), min_size=1, max_size=6
    )
)
def test_diagonal_gaussians_in_closed_form(parts: list[tuple[float, float, float, float]]) -> None:
    """Zero spreads included: a singular covariance costs no accuracy."""
    mean_a, mean_b, std_a, std_b = torch.tensor(parts, dtype=torch.float64).T
    a, b = Moments(mean_a, std_a.square().diag(), 9), Moments(mean_b, std_b.square().diag(), 9)
    want = float((mean_a - mean_b).square().sum() + (std_a - std_b).square().sum())
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-6, abs=1e-6)


@law
@given(seed=SEEDS, dim=st.integers(1, 12), far=st.floats(-1e3, 1e3))
def test_rotation_and_translation_change_nothing(seed: int, dim: int, far: float) -> None:
    a, b = cloud(seed, 40, dim), cloud(seed + 1, 30, dim)
    turn = rotation(seed, dim)
    want = frechet_distance(moments(a), moments(b))
    got = frechet_distance(moments(a @ turn + far), moments(b @ turn + far))
    assert got == pytest.approx(want, rel=1e-7)


@law
@given(seed=SEEDS, count=st.integers(2, 30), dim=st.integers(1, 20), scale=st.floats(0.01, 100))
def test_laws_of_a_squared_distance(seed: int, count: int, dim: int, scale: float) -> None:
    """Often with fewer samples than dimensions."""
    a, b = moments(cloud(seed, count, dim)), moments(cloud(seed + 1, count, dim))
    distance = frechet_distance(a, b)
    assert distance == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, a) <= 1e-10 * float(a.cov.trace())
    scaled = [moments(cloud(seed + k, count, dim) * scale) for k in (0, 1)]
    assert frechet_distance(*scaled) == pytest.approx(scale**2 * distance, rel=1e-7)


def test_a_pure_shift_of_a_singular_cloud() -> None:
    flat = cloud(5, 10, 64)
    assert frechet_distance(moments(flat), moments(flat + 0.25)) == pytest.approx(4.0, rel=1e-10)


def test_moments_are_unbiased_and_float64() -> None:
    x = cloud(3, 50, 4, torch.float32)
    got = moments(x)
    assert got.mean.dtype == got.cov.dtype == torch.float64
    assert got.count == 50
    assert torch.allclose(got.cov, x.double().T.cov(), rtol=1e-12)
    assert torch.allclose(got.mean, x.double().mean(0), rtol=1e-12)


def test_far_from_zero_float32_features_keep_their_variance() -> None:
    x = torch.tensor([[4096.0], [4096.5], [4097.0]])
    assert float(moments(x).cov) == 0.25


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(1, 4), DataError, "1 sample; it takes at least 2"),
        (torch.zeros(0, 4), DataError, "0 samples"),
        (torch.zeros(4), ShapeError, "takes \\(B, D\\)"),
        (torch.tensor([[1.0], [math.nan], [math.inf]]), NonFiniteError, "2 of 3 samples"),
    ],
)
def test_what_has_no_moments(x: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        moments(x)


def test_other_features_are_refused() -> None:
    a, b = moments(cloud(0, 9, 3)), moments(cloud(0, 9, 4))
    with pytest.raises(ShapeError, match="3 and of 4 dimensions"):
        frechet_distance(a, b)
    with pytest.raises(DataError, match="at least 2"):
        frechet_distance(a, Moments(a.mean, a.cov, 1))
