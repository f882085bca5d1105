"""The multistep solvers of diffusers on a model of the native clock, from the noise of `sample`.

These are what a teacher's user would turn to first; a student is compared with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.angle import HALF_PI
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser, as_w, cheapest, traits_of
from fewstep.core.grid import cosine
from fewstep.core.seed import Noise
from fewstep.errors import RangeError, ShapeError, did_you_mean
from fewstep.models.native import TIMESTEPS, native_scheduler

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

SOLVERS = {"dpm-solver++": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler"}
SMALLEST = 2.0**-24  # diffusers' own stand-in for a squared signal of 0, which these solvers need


def solver_scheduler(name: str) -> SchedulerMixin:
    """Return the stock scheduler of a solver in `SOLVERS`, second order, on the native clock.

    It visits the angles of DDIM with as many steps. Raises RangeError for another name.
    """
    if name not in SOLVERS:
        raise RangeError(
            f"solver {name!r} is unknown; there are {', '.join(SOLVERS)}."
            + did_you_mean(name, SOLVERS)
        )
    import diffusers

    betas = list(native_scheduler().config.trained_betas)
    before_last = float(torch.tensor([1 - b for b in betas[:-1]], dtype=torch.float64).prod())
    betas[-1] = 1 - SMALLEST / before_last
    scheduler: SchedulerMixin = getattr(diffusers, SOLVERS[name])(
        num_train_timesteps=TIMESTEPS,
        trained_betas=betas,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        solver_order=2,
        final_sigmas_type="zero",
    )
    return scheduler


def solve(
    denoiser: Denoiser,
    cond: Cond,
    *,
    solver: str,
    w: float | Tensor = 0.0,
    steps: int,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """Return (B, *D), one image for every condition, by a stock solver; as `fewstep.sample` else.

    denoiser: a model that can take any number of steps, on the native clock: a teacher or a stage
    one; anything with a shape in its traits. A step is one call of it.

    Raises RangeError: the solver is unknown, or the model was made for numbers of steps of its
    own; ShapeError: it does not know its shape.
    """
    traits = traits_of(denoiser)
    if traits.steps is not None:
        raise RangeError(
            f"{solver} on a model made for {traits.steps} steps of its own sampler; give a teacher."
        )
    if traits.clock is not cosine:
        raise RangeError(
            f"{solver} here walks the native clock, and this model has another; use the stock "
            "scheduler of that name on the model's own folder."
        )
    if traits.shape is None:
        raise ShapeError("the shape of one example is unknown to this model.")
    if steps < 1:
        raise RangeError(f"steps = {steps}; give 1 or more.")
    device, dtype = traits.device or torch.device("cpu"), traits.dtype or torch.float32
    total = conds.batch_size(cond)
    cond = conds.to(cond, device)
    if traits.check_cond is not None:
        traits.check_cond(cond)
    w_all = as_w(w, torch.empty((total, 1), dtype=dtype, device=device), traits.w_range)
    denoiser = cheapest(denoiser, w_all)
    out = []
    for first in range(0, total, batch_size or total):
        part = slice(first, min(first + (batch_size or total), total))
        z = Noise(seed, range(part.start, part.stop)).draw(traits.shape, dtype, device)
        out.append(_walk(denoiser, z, conds.take(cond, part), w_all[part], solver, steps))
    return torch.cat(out)


def _walk(denoiser: Denoiser, z: Tensor, cond: Cond, w: Tensor, solver: str, steps: int) -> Tensor:
    scheduler: Any = solver_scheduler(solver)
    scheduler.set_timesteps(steps, device=z.device)
    with torch.no_grad():
        for t in scheduler.timesteps:
            phi = torch.full((len(z),), HALF_PI * (int(t) + 1) / TIMESTEPS, device=z.device)
            z = scheduler.step(denoiser(z, phi, cond, w), t, z, return_dict=False)[0]
    return z
