"""`check_sampler`: does it go where it says, at the cost and the order that it says?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser
from fewstep.core.grid import cosine
from fewstep.core.samplers import Sampler, run
from fewstep.core.samplers.deterministic import deterministic
from fewstep.core.seed import Noise
from fewstep.testing.exact import Gaussian, GaussianJump
from fewstep.testing.report import Findings, largest


class Counting:
    """A denoiser that counts the examples it is asked about, in units of network passes."""

    def __init__(self, denoiser: Denoiser) -> None:
        """Count the calls of this denoiser."""
        self.denoiser = denoiser
        self.evaluations = 0

    @property
    def passes(self) -> int:
        """Those of the denoiser inside."""
        return self.denoiser.passes

    def __call__(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        """Answer, and count."""
        self.evaluations += len(z) * self.passes
        return self.denoiser(z, phi, cond, w)


def check_sampler(sampler: Sampler) -> list[str]:
    """Put a sampler through its laws on exact Gaussians; return those that hold.

    Raises CheckFailed that lists every broken law.
    """
    found = Findings(f"the sampler {sampler.name!r}")
    for steps in (1, 2, 3, 8):
        _path(found, sampler, steps)
    _independence(found, sampler)
    if sampler.order is None:
        _distribution(found, sampler)
    else:
        _order(found, sampler)
    return found.finish()


def _run(sampler: Sampler, denoiser: Denoiser, z: Tensor, steps: int, first: int = 0) -> Tensor:
    cond, w = torch.zeros(len(z), dtype=torch.long), torch.zeros(len(z), dtype=z.dtype)
    noise = Noise(0, range(first, first + len(z)))
    return run(sampler, denoiser, z, cond, w, cosine(steps), noise)


def _teacher(sampler: Sampler) -> Denoiser:
    return GaussianJump(0.3, 0.4) if sampler.jumps else Gaussian(0.3, 0.4)


def _noise(count: int) -> Tensor:
    return Noise(1, range(count)).draw((3,), torch.float64, torch.device("cpu"))


def _path(found: Findings, sampler: Sampler, steps: int) -> None:
    grid = cosine(steps)
    moves = sampler.moves(grid)
    start, end = (grid[-1], grid[0]) if sampler.encodes else (grid[0], grid[-1])
    found.note(
        f"{steps} steps: it goes from one end of the grid to the other",
        bool(moves) and (moves[0].phi, moves[-1].back) == (start, end),
        f"it goes from {moves[0].phi:.4g} to {moves[-1].back:.4g}, not {start:.4g} to {end:.4g}",
    )
    found.note(
        f"{steps} steps: each move starts where the last one ended",
        all(a.back == b.phi for a, b in zip(moves, moves[1:], strict=False)),
        "there is a gap between two moves",
    )
    counting = Counting(_teacher(sampler))
    _run(sampler, counting, _noise(5), steps)
    said = sampler.evaluations(counting, grid)
    found.note(
        f"{steps} steps: it costs what it says",
        counting.evaluations == 5 * said,
        f"it says {said} evaluations an example and makes {counting.evaluations / 5:g}",
    )


def _independence(found: Findings, sampler: Sampler) -> None:
    z, teacher = _noise(6), _teacher(sampler)
    whole = _run(sampler, teacher, z, 4)
    part = _run(sampler, teacher, z[4:], 4, first=4)
    found.note(
        "an example does not depend on its batch",
        torch.equal(whole[4:], part),
        f"drawn apart it differs by {largest(whole[4:], part):.3g}; draw noise per image",
    )


def _order(found: Findings, sampler: Sampler) -> None:
    """Measure how the error falls from 128 to 256 steps; the exact map is u -> m + s u."""
    teacher, z = Gaussian(0.3, 0.4), _noise(16)
    exact, start = (0.3 + 0.4 * z, z)
    if sampler.encodes:
        exact, start = start, exact
    coarse, fine = (largest(_run(sampler, teacher, start, n), exact) for n in (128, 256))
    order = math.log2(coarse / fine)
    slack = 0.05 if sampler.order == 1 else 0.1
    found.note(
        f"its order is {sampler.order}",
        abs(order - (sampler.order or 0)) <= slack,
        f"it measures {order:.3f} (error {coarse:.3g} at 128 steps, {fine:.3g} at 256)",
    )
    if sampler.encodes:
        errors = [
            largest(_run(deterministic, teacher, _run(sampler, teacher, start, n), n), start)
            for n in (64, 128)
        ]
        found.note(
            "decoding what it encoded comes back, nearer with more steps",
            errors[1] < 0.6 * errors[0],
            f"the way back errs by {errors[0]:.3g} at 64 steps and {errors[1]:.3g} at 128",
        )


def _distribution(found: Findings, sampler: Sampler) -> None:
    """Noise becomes the data's N(0.3, 0.4^2): 24,000 numbers, five standard errors."""
    z = _noise(8000)
    coarse, fine = (_run(sampler, _teacher(sampler), z, n) for n in (16, 256))
    error = 5 * 0.4 / math.sqrt(fine.numel())
    off = [abs(float(x.std()) - 0.4) for x in (coarse, fine)]
    found.note(
        "many steps draw from the data's distribution",
        abs(float(fine.mean()) - 0.3) < error + 0.01 and off[1] < error + 0.01,
        f"mean {float(fine.mean()):.4f} and deviation {float(fine.std()):.4f}, not 0.3 and 0.4",
    )
    found.note(
        "more steps come nearer to it",
        off[1] < 0.5 * off[0] + error,
        f"the deviation is off by {off[0]:.4f} at 16 steps and by {off[1]:.4f} at 256",
    )
