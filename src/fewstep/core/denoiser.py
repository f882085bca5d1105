"""The one noun: a denoiser is a function `v = denoiser(z, phi, cond, w)`.

The two-pass guided teacher and the one-pass few-step student are both denoisers, so samplers,
stages, metrics and tests work on either without knowing which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.angle import HALF_PI, expand, x_from_v
from fewstep.core.cond import Cond, Copies
from fewstep.core.grid import Clock, Split, cosine, equal_angles
from fewstep.errors import RangeError, ShapeError


class Denoiser(Protocol):
    """Anything that answers with the velocity v = dz/dphi of a noisy state (math.md 1).

    Called with z (B, *D); phi (B,) radians in [0, pi/2] and w (B,), both float32 or better; cond,
    a condition batch of B. Returns v (B, *D). Example i of the answer depends on example i of
    the question alone. w = 0 is no guidance, w = -1 unconditional (math.md 3).
    """

    @property
    def passes(self) -> int:
        """Network evaluations that one call costs: 1, or 2 for a guided teacher."""
        ...

    def __call__(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor, /) -> Tensor:
        """Return v (B, *D) at z (B, *D)."""
        ...


@dataclass(frozen=True)
class Traits:
    """What a denoiser says of itself; None where anything goes.

    Attributes:
        shape: of one example, without the batch.
        w_range: the w it was made for, both ends included.
        steps: the numbers of steps it was made for.
        sampler: the name of the sampler it was made for.
        clock: N -> the grid it is sampled on.
        split: where the sub-steps of one of its steps lie, so that grids of N and 2N are nested.
        phi_range: the angles it was trained at, both ends included.
        device, dtype: where and in what its states live.
        check_cond: raises a FewstepError for a condition that it cannot draw.
    """

    shape: tuple[int, ...] | None = None
    w_range: tuple[float, float] | None = None
    steps: tuple[int, ...] | None = None
    sampler: str | None = None
    clock: Clock = cosine
    split: Split = equal_angles
    phi_range: tuple[float, float] = (0.0, HALF_PI)
    device: torch.device | None = None
    dtype: torch.dtype | None = None
    check_cond: Callable[[Cond], None] | None = None


def traits_of(denoiser: Denoiser) -> Traits:
    """Return the denoiser's `traits`, or the default ones: a plain function need not have any."""
    traits = getattr(denoiser, "traits", None)
    return traits if isinstance(traits, Traits) else Traits()


def coefficient_dtype(z: Tensor) -> torch.dtype:
    """Return the dtype of phi and w beside z: float64 for float64, else float32, never less."""
    return torch.float64 if z.dtype == torch.float64 else torch.float32


def as_w(w: float | Tensor, z: Tensor, w_range: tuple[float, float] | None = None) -> Tensor:
    """Return the guidance weight as a (B,) tensor beside z (B, *D), checked once, here.

    Raises:
        ShapeError: w is a tensor of another length than B.
        RangeError: some w is not finite, or outside w_range; names it and the range.
    """
    out = torch.as_tensor(w, dtype=coefficient_dtype(z), device=z.device)
    if out.ndim > 1 or (out.ndim == 1 and len(out) != len(z)):
        raise ShapeError(
            f"w has shape {tuple(out.shape)} for a batch of {len(z)}; give one number, or one "
            "number an example."
        )
    low, high = float(out.min()), float(out.max())
    # The range is of decimal numbers, w of float32 ones: 0.3 must be inside [0, 0.3].
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    if not bool(torch.isfinite(out).all()):
        raise RangeError(f"w = {w}; it must be a finite number. Give a number such as 2.0.")
    if w_range is not None and not (w_range[0] - slack <= low and high <= w_range[1] + slack):
        worst = low if low < w_range[0] - slack else high
        raise RangeError(
            f"w = {worst:g} is outside the range that this model was trained for, "
            f"[{w_range[0]:g}, {w_range[1]:g}]. Choose a w inside it."
        )
    return out.expand(len(z)) if out.ndim == 0 else out


def guide(v_cond: Tensor, v_uncond: Tensor, w: Tensor) -> Tensor:
    """Return (1 + w) v_cond - w v_uncond. Source: math.md 3 (Ho & Salimans 2022).

    Written as a lerp so that w = 0 gives v_cond and w = -1 gives v_uncond, bit for bit.
    """
    return torch.lerp(v_uncond, v_cond, expand(1.0 + w, v_cond))


@dataclass(frozen=True)
class AtSteps:
    """A denoiser with the number of steps as an input, at one number: `denoiser(..., w, steps)`.

    Attributes:
        denoiser: also takes the number of steps of each example, (B,) int64.
        steps: the number.
    """

    denoiser: Any
    steps: int

    @property
    def passes(self) -> int:
        """The passes of the denoiser inside."""
        return int(self.denoiser.passes)

    @property
    def traits(self) -> Traits:
        """The traits of the denoiser inside, for this number of steps."""
        known = traits_of(self.denoiser)
        sampler = known.sampler or "deterministic"
        return replace(known, steps=(self.steps,), sampler=sampler)

    def __call__(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        """Return v (B, *D)."""
        steps = torch.full((len(z),), self.steps, device=z.device)
        v: Tensor = self.denoiser(z, phi, cond, w, steps)
        return v


def at_steps(denoiser: Denoiser, steps: int) -> Denoiser:
    """Return `denoiser` at a number of steps where that is an input of it; others as they are."""
    choose = getattr(denoiser, "at_steps", None)
    return denoiser if choose is None else cast(Denoiser, choose(steps))


@dataclass(frozen=True)
class Guided:
    """A conditional denoiser under classifier-free guidance: two passes as one batch of 2B.

    Attributes:
        denoiser: answers for any condition and for the null condition; its own w is fed 0.
        null_cond: "draw anything", a condition batch of 1.
        interval: (phi_lo, phi_hi); w counts as 0 outside it (Kynkaanniemi et al. 2024).
        threshold: applied to x after mixing, never before: (B, *D) -> (B, *D), say a clamp.
        rescale: applied to the mixture before that, where w > 0: (v mixed, v of the condition, z,
            phi) -> v.
    """

    denoiser: Denoiser
    null_cond: Cond
    interval: tuple[float, float] | None = None
    threshold: Callable[[Tensor], Tensor] | None = None
    rescale: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None
    _nulls: Copies = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise ShapeError for a null condition that is no batch of 1, or RangeError."""
        conds.repeat_null(self.null_cond, 1)
        if self.interval and not 0.0 <= self.interval[0] < self.interval[1] <= HALF_PI:
            raise RangeError(
                f"guidance interval {self.interval}; it must be (low, high) within [0, pi/2]."
            )

    @property
    def passes(self) -> int:
        """Twice the passes of the denoiser inside."""
        return 2 * self.denoiser.passes

    @property
    def traits(self) -> Traits:
        """The traits of the denoiser inside; any w is allowed."""
        return replace(traits_of(self.denoiser), w_range=None)

    def at(self, w: Tensor) -> Denoiser:
        """Return what is cheapest for these w (B,): at 0 everywhere, the conditional pass alone.

        Looks at the values of w, so it is for the edge of a loop, not for its inside.
        """
        return self if self.threshold is not None or bool(w.any()) else self.denoiser

    def __call__(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        """Return the guided v (B, *D). Source: math.md 3."""
        null = conds.repeat_null(conds.once(self.null_cond, z.device, self._nulls), len(z))
        both = conds.concat(cond, null)
        v = self.denoiser(
            torch.cat([z, z]), torch.cat([phi, phi]), both, torch.zeros_like(w).repeat(2)
        )
        # Autocast may have shortened it, and what is lost would be multiplied by 1 + w.
        v_cond, v_uncond = v.to(z.dtype).chunk(2)
        if self.interval is not None:
            inside = (phi >= self.interval[0]) & (phi <= self.interval[1])
            w = torch.where(inside, w, torch.zeros_like(w))
        v = guide(v_cond, v_uncond, w)
        if self.rescale is not None:
            v = torch.where(expand(w, z) > 0, self.rescale(v, v_cond, z, phi), v)
        if self.threshold is not None:
            # As a correction to v, so that an x which the threshold leaves alone leaves v alone.
            x = x_from_v(z, v, phi)
            v = v + (x - self.threshold(x)) / expand(torch.sin(phi), z).clamp_min(1e-4)
        return v


def inside(denoiser: Denoiser) -> Denoiser:
    """Return the denoiser inside a guided pair; another one is returned as it is."""
    return denoiser.denoiser if isinstance(denoiser, Guided) else denoiser


def cheapest(denoiser: Denoiser, w: Tensor) -> Denoiser:
    """Return `denoiser`; of a guided pair at w = 0 everywhere, the conditional denoiser alone."""
    return denoiser.at(w) if isinstance(denoiser, Guided) else denoiser
