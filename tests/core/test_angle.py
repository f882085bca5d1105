"""Conversions between clocks and predictions: closed forms and round trips."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.core import angle

inside = st.floats(1e-3, math.pi / 2 - 1e-3)


def vectors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(3, 4, dtype=torch.float64, generator=g) for _ in range(2))  # type: ignore[return-value]


@given(phi=inside)
def test_x_eps_and_v_are_one_rotation(phi: float) -> None:
    x, eps = vectors()
    z, v = angle.add_noise(x, eps, phi), angle.v_from_x_eps(x, eps, phi)
    close = {"rtol": 0, "atol": 1e-11}
    torch.testing.assert_close(angle.x_from_v(z, v, phi), x, **close)
    torch.testing.assert_close(angle.eps_from_v(z, v, phi), eps, **close)
    torch.testing.assert_close(angle.v_from_x(z, x, phi), v, rtol=0, atol=1e-9)
    torch.testing.assert_close(angle.v_from_eps(z, eps, phi), v, rtol=0, atol=1e-9)


@given(phi=st.floats(0, math.pi / 2), to=st.floats(0, math.pi / 2))
def test_a_rotation_carries_the_state_of_an_image_along(phi: float, to: float) -> None:
    x, eps = vectors()
    z, v = angle.add_noise(x, eps, phi), angle.v_from_x_eps(x, eps, phi)
    there = angle.rotate(z, v, phi - to)
    torch.testing.assert_close(there, angle.add_noise(x, eps, to), rtol=0, atol=1e-12)


def test_angles_may_differ_from_example_to_example() -> None:
    x, eps = vectors()
    phi = torch.tensor([0.1, 0.7, 1.5], dtype=torch.float64)
    z = angle.add_noise(x, eps, phi)
    for i, value in enumerate(phi.tolist()):
        torch.testing.assert_close(z[i], angle.add_noise(x[i], eps[i], value))


def test_images_keep_their_dtype() -> None:
    x = torch.ones(2, 1, 2, 2)
    assert angle.add_noise(x, x, torch.tensor([0.1, 0.2], dtype=torch.float64)).dtype == x.dtype
    half = x.bfloat16()
    assert angle.rotate(half, half, torch.tensor([0.1, 0.2])).dtype == torch.bfloat16


@given(low=st.floats(0.0, 1.5), up=st.floats(0.0, 1.5))
def test_renoising_keeps_the_marginal(low: float, up: float) -> None:
    """cos(phi) of the signal is scaled right, and the noise variances add up to sin^2."""
    a, b = sorted((low, up))
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    signal = float(angle.renoise(math.cos(a) * one, zero, a, b))
    old = float(angle.renoise(math.sin(a) * one, zero, a, b))
    fresh = float(angle.renoise(zero, one, a, b))
    assert signal == pytest.approx(math.cos(b), abs=1e-12)
    assert old**2 + fresh**2 == pytest.approx(math.sin(b) ** 2, abs=1e-9)


@given(phi=inside)
def test_logsnr_round_trip_and_definition(phi: float) -> None:
    p = torch.tensor(phi, dtype=torch.float64)
    logsnr = angle.logsnr_from_phi(p)
    assert float(angle.phi_from_logsnr(logsnr)) == pytest.approx(phi, abs=1e-12)
    assert float(torch.sigmoid(logsnr)) == pytest.approx(math.cos(phi) ** 2, abs=1e-12)


@given(phi=inside)
def test_edm_round_trip(phi: float) -> None:
    p = torch.tensor(phi, dtype=torch.float64)
    s = angle.sigma_edm_from_phi(p)
    assert float(angle.phi_from_sigma_edm(s)) == pytest.approx(phi, abs=1e-12)
    # y = x + s eps, scaled to unit total variance, is z.
    assert float(s / torch.sqrt(1 + s * s)) == pytest.approx(math.sin(phi), abs=1e-12)


@given(s=st.floats(0, 1))
def test_flow_states_and_velocities(s: float) -> None:
    x, eps = vectors()
    time = torch.full((3,), s, dtype=torch.float64)
    y, u = (1 - s) * x + s * eps, eps - x
    phi = angle.phi_from_flow(time)
    torch.testing.assert_close(angle.flow_from_phi(phi), time, rtol=0, atol=1e-12)
    k = angle.flow_scale(time)[:, None]
    torch.testing.assert_close(y / k, angle.add_noise(x, eps, phi), rtol=0, atol=1e-12)
    expected = angle.v_from_x_eps(x, eps, phi)
    torch.testing.assert_close(angle.v_from_flow(y, u, time), expected, rtol=0, atol=1e-12)


def test_stable_diffusions_table_has_the_angles_it_is_known_for() -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    phi = angle.phi_from_alphas_cumprod(torch.cumprod(1 - betas, 0))
    assert float(phi[0]) == pytest.approx(0.0292, abs=1e-4)
    assert float(phi[-1]) == pytest.approx(1.5025, abs=1e-4)
    assert bool((phi[1:] > phi[:-1]).all())
