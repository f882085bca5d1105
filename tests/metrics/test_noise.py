"""PSNR and the figures of noise: closed forms, and scipy as the judge."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from fewstep.errors import DataError, ShapeError
from fewstep.metrics import noise_figures, psnr


def unit(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_psnr_is_what_it_is_called() -> None:
    a = unit(5, 1, 4, 4)
    assert psnr(a, a + 0.2) == pytest.approx(20.0, abs=1e-5)
    two = torch.stack([a[0] + 0.2, a[1] + 0.02])
    assert psnr(a[:2], two) == pytest.approx(30.0, abs=1e-4)  # of 20 and 40
    assert psnr(a, a) == pytest.approx(10 * math.log10(4e10))


def test_psnr_that_cannot_be() -> None:
    with pytest.raises(ShapeError):
        psnr(unit(2, 3), unit(2, 4))
    with pytest.raises(DataError):
        psnr(unit(0, 3), unit(0, 3))


def test_gaussian_noise_is_gaussian() -> None:
    found = noise_figures(unit(2000, 3, 4, 4))
    assert found["noise_mean"] == pytest.approx(0, abs=0.02)
    assert found["noise_variance"] == pytest.approx(1, abs=0.02)
    assert found["noise_ks"] < 1.6 / math.sqrt(2000 * 48)
    assert found["noise_ks_sliced"] == pytest.approx(0.87 / math.sqrt(2000), rel=0.15)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_the_distance_is_that_of_kolmogorov_and_smirnov(scale: float) -> None:
    z = scale * unit(50, 7) + 0.1
    judge = stats.kstest(z.double().flatten().numpy(), "norm").statistic
    assert noise_figures(z)["noise_ks"] == pytest.approx(judge, abs=1e-12)


def test_slices_see_elements_that_hang_together() -> None:
    """Each element is a unit Gaussian, but all of an example are the same one."""
    z = unit(3000, 1).expand(-1, 48)
    found = noise_figures(z)
    assert found["noise_ks"] < 0.05
    assert found["noise_ks_sliced"] > 0.1


def test_one_noise_has_no_figures() -> None:
    with pytest.raises(DataError):
        noise_figures(unit(1, 4))
