"""`check_stage`: is this a regression problem that a student can be trained on and resumed?"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.angle import HALF_PI, rotate
from fewstep.core.cond import Cond
from fewstep.core.denoiser import coefficient_dtype
from fewstep.core.seed import generator
from fewstep.distill.problem import Problem, Regression
from fewstep.testing.report import Findings, largest


def check_stage(problem: Problem, x: Tensor, cond: Cond) -> list[str]:
    """Put a stage through its laws on clean x (B, *D), B >= 2; return those that hold.

    A stage with `moves`, as `StepDistillation` has them, must also give one step that lands where
    the steps of its teacher land. Raises CheckFailed that lists every broken law.
    """
    found = Findings(f"the stage {type(problem).__name__}")

    def draw(seed: int) -> Regression:
        return problem(x, cond, generator(x.device, seed, "check_stage"))

    before, state = x.clone(), torch.random.get_rng_state()
    first, again, other = draw(0), draw(0), draw(1)
    _shapes(found, first, x)
    found.note(
        "the same generator draws the same problem",
        all(torch.equal(a, b) for a, b in zip(_tensors(first), _tensors(again), strict=True)),
        "two draws from one seed differ; take every draw from the generator given",
    )
    found.note(
        "it draws from the generator given, and from nothing else",
        torch.equal(state, torch.random.get_rng_state()),
        "the global generator moved; pass generator= to every draw",
    )
    found.note(
        "another generator draws another problem",
        # z alone may not: an encoder of one step always starts at x itself.
        any(not torch.equal(a, b) for a, b in zip(_tensors(first), _tensors(other), strict=True)),
        "two seeds give the same draws; use the generator",
    )
    found.note("it leaves x alone", torch.equal(x, before), "x was changed in place")
    if hasattr(problem, "moves"):
        _lands(found, problem, x, cond)
    return found.finish()


def _tensors(r: Regression) -> list[Tensor]:
    return [r.z, r.phi, r.w, r.v_target]


def _shapes(found: Findings, r: Regression, x: Tensor) -> None:
    for name, t in (("z", r.z), ("v_target", r.v_target)):
        found.note(
            f"{name} is like x",
            (t.shape, t.dtype, t.device) == (x.shape, x.dtype, x.device),
            f"it is {tuple(t.shape)} {t.dtype}, x {tuple(x.shape)} {x.dtype}",
        )
    for name, t in (("phi", r.phi), ("w", r.w)):
        found.note(
            f"{name} is one number an example, float32 or better",
            (t.shape, t.dtype) == ((len(x),), coefficient_dtype(x)),
            f"it is {tuple(t.shape)} {t.dtype}",
        )
    found.note(
        "cond has one condition an example",
        conds.batch_size(r.cond) == len(x),
        f"it has {conds.batch_size(r.cond)} for {len(x)}",
    )
    found.note(
        "everything is finite",
        all(bool(t.isfinite().all()) for t in _tensors(r)),
        "something is infinite or not a number",
    )
    found.note(
        "no gradient flows into the target",
        not (r.v_target.requires_grad or r.z.requires_grad),
        "ask the teacher under torch.no_grad()",
    )
    found.note(
        "phi lies in [0, pi/2]",
        bool(((r.phi >= 0) & (r.phi <= HALF_PI + 1e-6)).all()),
        f"it goes from {float(r.phi.min()):.4g} to {float(r.phi.max()):.4g}",
    )


def _lands(found: Findings, stage: Any, x: Tensor, cond: Cond) -> None:
    """One rotation by the target lands where the teacher's own sub-steps land, from every move."""
    exact = coefficient_dtype(x)
    tolerance = 1e-12 if exact == torch.float64 else 1e-5
    w = torch.full((len(x),), stage.w_range[1], dtype=exact, device=x.device)
    draws = generator("cpu", 0, "lands")
    z = torch.randn(x.shape, generator=draws, dtype=x.dtype).to(x.device)
    worst = 0.0
    for i, move in enumerate(stage.moves):
        index = torch.full((len(x),), i, device=x.device)
        reached = rotate(z, stage.target(z, index, cond, w), move.phi - move.to)
        y, before, points = z, (z, z), stage.split(move.phi, move.to, stage.substeps)
        h = [a - b for a, b in zip(points, points[1:], strict=False)]
        with torch.no_grad():
            for k, phi in enumerate(points[:-1]):
                angle = torch.full((len(x),), phi, dtype=exact, device=x.device)
                v = stage.teacher(y, angle, cond, w)
                u = v
                if stage.order == 2 and k > 0:
                    # What v would be, had x and eps stayed the same since the velocity before.
                    same = math.cos(h[k - 1]) * before[1] + math.sin(h[k - 1]) * before[0]
                    r = h[k] / (2 * h[k - 1]) + (h[0] / (2 * h[1]) if k == 1 else 0.0)
                    u = v + r * (v - same)
                before = (y, v)
                y = rotate(y, u, h[k])
        worst = max(worst, largest(reached, y))
    found.note(
        "one step by the target lands where the teacher's sub-steps land",
        worst <= tolerance * max(1.0, float(z.abs().max())),
        f"it is off by {worst:.3g}",
    )
