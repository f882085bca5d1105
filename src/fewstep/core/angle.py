"""One clock: the angle phi of a variance-preserving state (math.md section 1).

`z = cos(phi) x + sin(phi) eps`, phi from 0 (clean) to pi/2 (noise), `v = dz/dphi`. Every
other clock (log-SNR, EDM's sigma, rectified flow, a discrete table) is converted here, once.

Angles are Python floats, or tensors of shape (B,) in float32 or float64. `z`, `x`, `eps` and
`v` are (B, *D) and keep their dtype: only the (B,) coefficients are cast to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Angle: TypeAlias = "float | Tensor"

HALF_PI = math.pi / 2


def expand(coefficient: Tensor, z: Tensor) -> Tensor:
    """Return a (B,) coefficient as (B, 1, ..., 1) in the dtype of z (B, *D)."""
    return coefficient.to(z.dtype).reshape(-1, *[1] * (z.ndim - 1))


def _apply(function: Callable[[float], float], phi: Angle, z: Tensor) -> Angle:
    # A float keeps float64 until it meets z; a tensor keeps its own dtype until expand().
    if isinstance(phi, Tensor):
        return expand(torch.cos(phi) if function is math.cos else torch.sin(phi), z)
    return function(phi)


def alpha_sigma(phi: Angle, z: Tensor) -> tuple[Angle, Angle]:
    """Return (cos phi, sin phi), ready to multiply z (B, *D). Source: math.md 1."""
    return _apply(math.cos, phi, z), _apply(math.sin, phi, z)


def add_noise(x: Tensor, eps: Tensor, phi: Angle) -> Tensor:
    """Return z = cos(phi) x + sin(phi) eps, the state of x at angle phi."""
    alpha, sigma = alpha_sigma(phi, x)
    return alpha * x + sigma * eps


def v_from_x_eps(x: Tensor, eps: Tensor, phi: Angle) -> Tensor:
    """Return v = cos(phi) eps - sin(phi) x."""
    alpha, sigma = alpha_sigma(phi, x)
    return alpha * eps - sigma * x


def x_from_v(z: Tensor, v: Tensor, phi: Angle) -> Tensor:
    """Return x = cos(phi) z - sin(phi) v. No division: exact at both ends."""
    alpha, sigma = alpha_sigma(phi, z)
    return alpha * z - sigma * v


def eps_from_v(z: Tensor, v: Tensor, phi: Angle) -> Tensor:
    """Return eps = sin(phi) z + cos(phi) v. No division: exact at both ends."""
    alpha, sigma = alpha_sigma(phi, z)
    return sigma * z + alpha * v


def v_from_x(z: Tensor, x: Tensor, phi: Angle) -> Tensor:
    """Return v = (cos(phi) z - x) / sin(phi). Divides: phi must not be 0."""
    alpha, sigma = alpha_sigma(phi, z)
    return (alpha * z - x) / sigma


def v_from_eps(z: Tensor, eps: Tensor, phi: Angle) -> Tensor:
    """Return v = (eps - sin(phi) z) / cos(phi). Divides: phi must stay below pi/2.

    An eps-network has no information on x at pi/2; adapters must refuse to start there.
    """
    alpha, sigma = alpha_sigma(phi, z)
    return (eps - sigma * z) / alpha


def rotate(z: Tensor, v: Tensor, h: Angle) -> Tensor:
    """Return the DDIM step from phi to phi - h: cos(h) z - sin(h) v. h < 0 adds noise.

    Source: math.md 2 (Song et al. 2021 on the angle of Salimans & Ho 2022).
    """
    cos_h, sin_h = alpha_sigma(h, z)
    return cos_h * z - sin_h * v


def renoise(z: Tensor, eps: Tensor, phi_from: float, phi_to: float) -> Tensor:
    """Return z at phi_from carried up to the noisier phi_to by fresh noise eps.

    `r z + sqrt(1 - r^2) eps` with r = cos(phi_to) / cos(phi_from). Source: math.md 6.
    """
    r = math.cos(phi_to) / math.cos(phi_from)
    return r * z + math.sqrt(max(0.0, 1.0 - r * r)) * eps


# Other clocks. Each takes and returns tensors of any shape, in the dtype given.


def phi_from_logsnr(logsnr: Tensor) -> Tensor:
    """Return phi in (0, pi/2) of the log-SNR `log(alpha^2 / sigma^2)`: atan(exp(-logsnr/2))."""
    return torch.atan(torch.exp(-0.5 * logsnr))


def logsnr_from_phi(phi: Tensor) -> Tensor:
    """Return logsnr = -2 log tan(phi); +inf at 0, large and negative at pi/2."""
    return -2.0 * torch.log(torch.tan(phi))


def phi_from_sigma_edm(sigma_edm: Tensor) -> Tensor:
    """Return phi of EDM's noise level s, in y = x + s eps: atan(s). z is y cos(phi)."""
    return torch.atan(sigma_edm)


def sigma_edm_from_phi(phi: Tensor) -> Tensor:
    """Return EDM's noise level tan(phi)."""
    return torch.tan(phi)


def phi_from_flow(s: Tensor) -> Tensor:
    """Return phi of rectified flow's time s, in y = (1 - s) x + s eps, s in [0, 1]."""
    return torch.atan2(s, 1.0 - s)


def flow_from_phi(phi: Tensor) -> Tensor:
    """Return rectified flow's time s = sin / (sin + cos), in [0, 1]."""
    return torch.sin(phi) / (torch.sin(phi) + torch.cos(phi))


def flow_scale(s: Tensor) -> Tensor:
    """Return k = sqrt((1 - s)^2 + s^2): a flow state y is k z."""
    return torch.sqrt((1.0 - s).square() + s.square())


def v_from_flow(y: Tensor, u: Tensor, s: Tensor) -> Tensor:
    """Return v from a flow state y (B, *D), its network's u = eps - x, and its time s (B,).

    `v = ((1 - 2 s) y + k^2 u) / k`. Source: math.md 1, rectified flow.
    """
    s_y = expand(s, y)
    k = flow_scale(s_y)
    return ((1.0 - 2.0 * s_y) * y + k.square() * u) / k


def phi_from_alphas_cumprod(alphas_cumprod: Tensor) -> Tensor:
    """Return the angles (float64) of a discrete table of alpha^2: atan2(sqrt(1-a), sqrt(a))."""
    a = alphas_cumprod.double().clamp(0.0, 1.0)
    return torch.atan2(torch.sqrt(1.0 - a), torch.sqrt(a))
