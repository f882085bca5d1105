"""`sample`: noise in, images out, with every range checked once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser, Traits, as_w, cheapest, traits_of
from fewstep.core.grid import Grid
from fewstep.core.samplers import Callback, Sampler, get_sampler, run
from fewstep.core.seed import Noise
from fewstep.errors import RangeError, ShapeError


def sample(
    denoiser: Denoiser,
    cond: Cond,
    *,
    w: float | Tensor = 0.0,
    steps: int | None = None,
    seed: int = 0,
    sampler: str | None = None,
    z: Tensor | None = None,
    shape: tuple[int, ...] | None = None,
    batch_size: int | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Draw one image for every condition. Image k depends on (seed, k, cond[k], w[k]) alone.

    Args:
        denoiser: a model, a `Guided` teacher, or your own `v = f(z, phi, cond, w)`.
        cond: a condition batch of B.
        w: guidance weight, one number or (B,); 0 is none, -1 unconditional. Other libraries'
            guidance scale is 1 + w.
        steps: of the grid; may be left out where the model was made for one number of steps.
        seed: of the noise; each image has a stream of its own.
        sampler: a name in `SAMPLERS`; by default the one that the model was made for.
        z: (B, *D) the state to start from, instead of noise: needed by the encoding sampler.
        shape: of one example, where the denoiser does not say it itself and z is not given.
        batch_size: at most so many at a time; the result does not depend on it.
        callback: told of every move of every batch.

    Returns:
        (B, *D) the clean x, or the noise where the sampler encodes.

    Raises:
        RangeError: w, steps or sampler is not what the model was made for.
        ShapeError: cond, z, w or shape do not fit each other.

    Source: math.md 2, 6 and 7.
    """
    walk = prepare(denoiser, cond, w=w, steps=steps, sampler=sampler, z=z, shape=shape)
    out = []
    for part, noise in walk.batches(seed, batch_size):
        # Drawn even where z is given: the noise of later moves must not depend on that.
        start = walk.noise(noise)
        if z is not None:
            start = z[part].to(walk.device)
        out.append(walk.run(start, part, noise, callback=callback))
    return torch.cat(out)


@dataclass(frozen=True)
class Walk:
    """A sampling that has been checked: what `sample` and the edits of `fewstep.edit` share."""

    denoiser: Denoiser
    sampler: Sampler
    cond: Cond
    w: Tensor
    grid: Grid
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def batches(self, seed: int, batch_size: int | None) -> Iterator[tuple[slice, Noise]]:
        """Yield at most batch_size examples at a time, with their own streams of noise."""
        total = len(self.w)
        for first in range(0, total, batch_size or total):
            part = slice(first, min(first + (batch_size or total), total))
            yield part, Noise(seed, range(part.start, part.stop))

    def noise(self, noise: Noise) -> Tensor:
        """Return the next noise (B, *D) of the streams, where and in what the states live."""
        return noise.draw(self.shape, self.dtype, self.device)

    def run(
        self,
        z: Tensor,
        part: slice,
        noise: Noise,
        *,
        grid: Grid | None = None,
        sampler: Sampler | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Carry the examples of a part from z (B, *D) to the grid's end."""
        few = conds.take(self.cond, part)
        chosen, grid = sampler or self.sampler, grid or self.grid
        return run(chosen, self.denoiser, z, few, self.w[part], grid, noise, callback)


def prepare(
    denoiser: Denoiser,
    cond: Cond,
    *,
    w: float | Tensor,
    steps: int | None,
    sampler: str | None,
    z: Tensor | None,
    shape: tuple[int, ...] | None = None,
) -> Walk:
    """Check what `sample` is given against what the denoiser was made for, once."""
    traits = traits_of(denoiser)
    chosen = _sampler(sampler, traits)
    grid = traits.clock(_steps(steps, traits, chosen))
    total = conds.batch_size(cond)
    device = traits.device or (z.device if z is not None else torch.device("cpu"))
    cond = conds.to(cond, device)
    if traits.check_cond is not None:
        traits.check_cond(cond)
    shape = _shape(z, shape, traits, total, chosen)
    dtype = z.dtype if z is not None else traits.dtype or torch.float32
    like = torch.empty((total, 1), dtype=dtype, device=device)
    w_all = as_w(w, like, traits.w_range)
    return Walk(cheapest(denoiser, w_all), chosen, cond, w_all, grid, shape, dtype, device)


def _sampler(name: str | None, traits: Traits) -> Sampler:
    made_for = traits.sampler
    if name is not None and made_for is not None and name != made_for:
        get_sampler(name)
        raise RangeError(
            f"sampler {name!r}; this model was made for the {made_for!r} sampler. Use that, "
            "or a model made for yours."
        )
    return get_sampler(name or made_for or "deterministic")


def _steps(steps: int | None, traits: Traits, sampler: Sampler) -> int:
    if steps is None:
        if traits.steps is None or len(traits.steps) != 1:
            raise RangeError("steps is not given, and this model can take any. Say steps=64, say.")
        return traits.steps[0]
    if traits.steps is not None and steps not in traits.steps:
        allowed = ", ".join(map(str, traits.steps))
        raise RangeError(
            f"steps = {steps}; this model was made for {allowed} ({sampler.name}). Use "
            f"steps={traits.steps[-1]}, or the model of the chain that was made for {steps}."
        )
    return steps


def _shape(
    z: Tensor | None,
    shape: tuple[int, ...] | None,
    traits: Traits,
    total: int,
    sampler: Sampler,
) -> tuple[int, ...]:
    if z is None and sampler.encodes:
        raise ShapeError("the encoding sampler starts from images; give them as z=(B, *D).")
    found = tuple(z.shape[1:]) if z is not None else shape or traits.shape
    if found is None:
        raise ShapeError("the shape of one example is unknown; give shape=(1, 8, 8), say, or z=.")
    if z is not None and len(z) != total:
        raise ShapeError(f"z holds {len(z)} examples and cond {total}; they must be as many.")
    if traits.shape is not None and found != traits.shape:
        raise ShapeError(f"examples of shape {found}; this model was made for {traits.shape}.")
    return found
