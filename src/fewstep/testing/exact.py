"""Exact teachers: data whose denoiser is known in closed form, in any dtype, at every angle.

For data N(m, s^2 I), with a = cos(phi), g = sin(phi) and D = a^2 s^2 + g^2, the velocity is
`v = a g (1 - s^2) / D (z - a m) - g m` (math.md 2): no division by a or g, so both ends are exact.
A mixture's velocity is the mean of its components', weighted by their posterior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.core.angle import expand
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Guided, Traits
from fewstep.core.grid import Grid
from fewstep.errors import RangeError, ShapeError


@dataclass(frozen=True)
class Gaussian:
    """The exact denoiser of data N(mean, std^2) in every coordinate; cond and w are ignored."""

    mean: float = 0.0
    std: float = 1.0

    passes = 1

    def __call__(self, z: Tensor, phi: Tensor, _cond: Cond, _w: Tensor) -> Tensor:
        """Return v (B, *D)."""
        a, g = expand(torch.cos(phi), z), expand(torch.sin(phi), z)
        slope = a * g * (1 - self.std**2) / (a * a * self.std**2 + g * g)
        return slope * (z - a * self.mean) - g * self.mean

    def factor(self, grid: Grid) -> float:
        """Return rho: DDIM on this grid maps noise u to mean + rho u, for a grid pi/2 -> 0.

        `rho` of a step is `(cos cos' s^2 + sin sin') / (cos^2 s^2 + sin^2)` (math.md 2).
        """
        s2, product = self.std**2, 1.0
        for phi, to in pairwise(grid):
            turned = math.cos(phi) * math.cos(to) * s2 + math.sin(phi) * math.sin(to)
            product *= turned / (math.cos(phi) ** 2 * s2 + math.sin(phi) ** 2)
        return product


@dataclass(frozen=True)
class GaussianJump:
    """The exact consistency model of data N(mean, std^2); cond and w are ignored.

    One rotation by phi along its v ends where the trajectory of `Gaussian` ends, at
    `m + s (z - a m) / sqrt(D)`, D = a^2 s^2 + g^2. std must be above 0.
    """

    mean: float = 0.0
    std: float = 1.0

    passes = 1
    traits = Traits(sampler="consistency")

    def __call__(self, z: Tensor, phi: Tensor, _cond: Cond, _w: Tensor) -> Tensor:
        """Return v (B, *D)."""
        a, g = expand(torch.cos(phi), z), expand(torch.sin(phi), z)
        s, root = self.std, torch.sqrt(a * a * self.std**2 + g * g)
        # (a - s / root) / g, without a division by g.
        slope = g * (a * a - s * s * (1 + a * a)) / (root * (a * root + s))
        return slope * (z - a * self.mean) - g * self.mean


@dataclass(frozen=True)
class Mixture:
    """The exact denoiser of Gaussian mixtures, one for each of K classes; w is ignored.

    Attributes:
        means: (K, M, D): M components for each class.
        std: of every component, above 0.

    cond: (B,) class ids; K, the null condition, is the mixture of all classes. All components
    have the same weight.
    """

    means: Tensor
    std: float

    passes = 1

    def __post_init__(self) -> None:
        """Raise ShapeError or RangeError for means or std that make no mixture."""
        if self.means.ndim != 3:
            raise ShapeError(f"means of shape {tuple(self.means.shape)}; it must be (K, M, D).")
        if not self.std > 0:
            raise RangeError(f"std = {self.std}; it must be above 0.")

    @property
    def null_cond(self) -> Tensor:
        """The null condition: the class id K, a batch of 1."""
        return torch.tensor([len(self.means)])

    def guided(self) -> Guided:
        """Return the two-pass guided teacher, exact at every w."""
        return Guided(self, self.null_cond)

    def __call__(self, z: Tensor, phi: Tensor, cond: Cond, _w: Tensor) -> Tensor:
        """Return v (B, D)."""
        assert isinstance(cond, Tensor)
        classes, per_class, _ = self.means.shape
        m = self.means.to(z).reshape(1, classes * per_class, -1)
        a, g = torch.cos(phi).to(z)[:, None, None], torch.sin(phi).to(z)[:, None, None]
        spread = a * a * self.std**2 + g * g
        off = z[:, None, :] - a * m  # (B, K M, D)
        owner = torch.arange(classes, device=z.device).repeat_interleave(per_class)
        allowed = (cond[:, None] == owner) | (cond[:, None] == classes)
        fit = -off.square().sum(dim=2) / (2 * spread[..., 0])
        posterior = torch.softmax(fit.masked_fill(~allowed, -math.inf), dim=1)[..., None]
        v = a * g * (1 - self.std**2) / spread * off - g * m
        return (posterior * v).sum(dim=1)

    def draw(self, cond: Tensor, generator: torch.Generator) -> Tensor:
        """Return clean x (B, D) of classes cond (B,), each below K."""
        part = torch.randint(self.means.shape[1], cond.shape, generator=generator)
        centre = self.means[cond, part]
        return centre + self.std * torch.randn(
            centre.shape, generator=generator, dtype=centre.dtype
        )
