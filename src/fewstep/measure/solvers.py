"""The multistep solvers of diffusers on a model of fewstep, from the noise of `sample`.

These are what a teacher's user would turn to first; a student is compared with them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.angle import HALF_PI
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser, inside, traits_of
from fewstep.core.grid import cosine
from fewstep.core.sample import prepare
from fewstep.errors import RangeError, ShapeError, did_you_mean
from fewstep.models.clocks.betas import BetaClock
from fewstep.models.clocks.native import TIMESTEPS, native_scheduler

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

SOLVERS = {"dpm-solver++": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler"}
SMALLEST = 2.0**-24  # diffusers' own stand-in for a squared signal of 0, which these solvers need


def solver_scheduler(name: str, table: BetaClock | None = None) -> SchedulerMixin:
    """Return the stock scheduler of a solver in `SOLVERS`, second order, that steps by v.

    table: the clock; by default the native one. It visits the angles of DDIM with as many steps.
    Raises RangeError for another name.
    """
    if name not in SOLVERS:
        raise RangeError(
            f"solver {name!r} is unknown; there are {', '.join(SOLVERS)}."
            + did_you_mean(name, SOLVERS)
        )
    import diffusers

    stock = native_scheduler() if table is None else table.scheduler()
    betas = _ending_in_some_signal(stock.betas)
    scheduler: SchedulerMixin = getattr(diffusers, SOLVERS[name])(
        num_train_timesteps=len(betas),
        trained_betas=betas,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        solver_order=2,
        final_sigmas_type="zero",
    )
    return scheduler


def _ending_in_some_signal(betas: Tensor) -> list[float]:
    """Return the betas, the last such that a squared signal of at least SMALLEST is left."""
    known: list[float] = betas.double().tolist()
    before_last = math.prod(1 - b for b in known[:-1])
    return [*known[:-1], min(known[-1], 1 - SMALLEST / before_last)]


def solve(
    denoiser: Denoiser,
    cond: Cond,
    *,
    solver: str,
    w: float | Tensor = 0.0,
    steps: int,
    seed: int = 0,
    batch_size: int | None = None,
    number: int = 0,
) -> Tensor:
    """Return (B, *D), one image for every condition, by a stock solver; as `fewstep.sample` else.

    denoiser: a model that can take any number of steps: a teacher or a stage one, on the native
    clock or on a table of betas; anything with a shape in its traits. A step is one call of it.
    number: of the first image among those of the seed.

    Raises RangeError: the solver is unknown, or the model was made for numbers of steps of its
    own, or has a clock of its own; ShapeError: it does not know its shape.
    """
    traits = traits_of(denoiser)
    if traits.steps is not None:
        raise RangeError(
            f"{solver} on a model made for {traits.steps} steps of its own sampler; give a teacher."
        )
    clock = getattr(inside(denoiser), "clock", None)
    table = clock if isinstance(clock, BetaClock) else None
    if traits.clock is not cosine and table is None:
        raise RangeError(
            f"{solver} here takes the native clock or a table of betas, and this model has a clock "
            "of its own; use `fewstep.sample`."
        )
    if traits.shape is None:
        raise ShapeError("the shape of one example is unknown to this model.")
    most = len(table) if table else TIMESTEPS
    if not 1 <= steps <= most:
        raise RangeError(
            f"steps = {str(steps)[:40]}; give 1 or more, up to the {most} timesteps of the clock."
        )
    prepared = prepare(denoiser, cond, w=w, steps=1, sampler=None, z=None)  # the grid is not used
    angles = table.phis if table else HALF_PI * (torch.arange(TIMESTEPS) + 1.0) / TIMESTEPS
    out = []
    for part, noise in prepared.batches(seed, batch_size, number):
        scheduler: Any = solver_scheduler(solver, table)
        scheduler.set_timesteps(steps, device=prepared.device)
        z, few, w_few = prepared.noise(noise), conds.take(prepared.cond, part), prepared.w[part]
        with torch.no_grad():
            for t in scheduler.timesteps:
                phi = torch.full((len(z),), float(angles[int(t)]), device=prepared.device)
                v = prepared.denoiser(z, phi, few, w_few)
                z = scheduler.step(v, t, z, return_dict=False)[0]
        out.append(z)
    return torch.cat(out)
