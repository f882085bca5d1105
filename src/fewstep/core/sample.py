"""`sample`: noise in, images out, with every range checked once."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.cond import Cond, Given
from fewstep.core.denoiser import Denoiser, Traits, as_w, at_steps, cheapest, traits_of
from fewstep.core.finite import check_finite
from fewstep.core.grid import Grid
from fewstep.core.samplers import Callback, Sampler, get_sampler, run
from fewstep.core.seed import Noise
from fewstep.errors import FewstepError, RangeError, ShapeError

W_LIMIT = 1000.0  # beyond it, a guided image is saturated or not finite
DIVERGED = "Choose a smaller w, and check the weights and the inputs for NaN."


def sample(
    denoiser: Denoiser,
    cond: Given,
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
    """Draw one image per condition. Image k depends only on seed, k, cond[k] and w[k].

    Args:
        denoiser: a model, a `Guided` teacher, or your own `v = f(z, phi, cond, w)`.
        cond: a condition batch of B, or class ids: a list, a range, a NumPy array, or one id.
        w: guidance weight, one number or (B,), within [-1000, 1000] and the range that the model
            was trained for. 0 is no guidance, -1 is unconditional. The guidance scale of other
            libraries is 1 + w.
        steps: number of sampling steps, 1 to 100,000; None uses the number that the model was made
            for.
        seed: of the noise, an integer. Each image has its own random stream.
        sampler: a name in `SAMPLERS`; None uses the sampler that the model was made for.
        z: (B, *D) the state to start from instead of noise, in the dtype of the model. The
            encoding sampler requires it.
        shape: of one example; required where neither the denoiser nor z has it.
        batch_size: sample at most this many at a time, at least 1; None samples all at once. The
            result does not depend on it.
        callback: called with a `Progress` after every move of every batch.

    Returns:
        (B, *D) the clean x, or the noise where the sampler encodes; always finite.

    Raises:
        RangeError: w, steps, seed, batch_size or sampler is not allowed, or the model was not
            made for it.
        ShapeError: cond, z, w or shape do not fit each other or the model.
        NonFiniteError: the result holds NaN or infinity.

    Source: math.md 2, 6 and 7.
    """
    prepared = prepare(denoiser, cond, w=w, steps=steps, sampler=sampler, z=z, shape=shape)
    out = []
    for part, noise in prepared.batches(seed, batch_size):
        # Drawn even where z is given: the noise of later moves must not depend on that.
        start = prepared.noise(noise)
        if z is not None:
            start = z[part].to(prepared.device)
        out.append(prepared.run(start, part, noise, callback=callback))
    return joined(out)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return the batches of a result as one tensor. Raises NonFiniteError for NaN or infinity."""
    return check_finite(torch.cat(list(parts)), "the sampled result", DIVERGED)


def whole_number(value: object, name: str, least: int | None = None) -> int:
    """Return an integer argument. Raises RangeError where it is none, or is below `least`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or (least is not None and number < least):
        least_text = "" if least is None else f" of at least {least}"
        raise RangeError(
            f"{name} must be an integer{least_text}, got {value!r}. Pass one, for example "
            f"{name}={max(least or 0, 4)}."
        )
    return number


@dataclass(frozen=True)
class Prepared:
    """Checked arguments of a sampling run, shared by `sample` and `fewstep.edit`."""

    denoiser: Denoiser
    sampler: Sampler
    cond: Cond
    w: Tensor
    grid: Grid
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def batches(
        self, seed: int, batch_size: int | None, number: int = 0
    ) -> Iterator[tuple[slice, Noise]]:
        """Yield at most batch_size examples at a time, each with its own stream of noise.

        number: of the first example among the images of the seed.

        Raises RangeError: a seed that is no integer, or a batch_size below 1.
        """
        seed, total = whole_number(seed, "seed"), len(self.w)
        if abs(seed) >= 2**63:
            raise RangeError(
                f"seed must lie between -2**63 and 2**63, got a number of {seed.bit_length()} "
                "bits. Choose a smaller one."
            )
        size = total if batch_size is None else whole_number(batch_size, "batch_size", 1)
        for first in range(0, total, size):
            part = slice(first, min(first + size, total))
            yield part, Noise(seed, range(number + part.start, number + part.stop))

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
    cond: Given,
    *,
    w: float | Tensor,
    steps: int | None,
    sampler: str | None,
    z: Tensor | None,
    shape: tuple[int, ...] | None = None,
) -> Prepared:
    """Return the arguments of `sample`, checked once against what the denoiser was made for.

    Raises RangeError and ShapeError as `sample` does.
    """
    traits = traits_of(denoiser)
    chosen = _sampler(sampler, traits)
    count = _steps(steps, traits, chosen)
    grid = traits.clock(count)
    cond = conds.as_cond(cond)
    total = conds.batch_size(cond)
    _check_states(z, traits)
    device = traits.device or (z.device if z is not None else torch.device("cpu"))
    cond = conds.to(cond, device)
    if traits.check_cond is not None:
        traits.check_cond(cond)
    shape = _shape(z, shape, traits, total, chosen)
    dtype = z.dtype if z is not None else traits.dtype or torch.float32
    like = torch.empty((total, 1), dtype=dtype, device=device)
    w_all = _checked_w(w, like, traits.w_range)
    made = at_steps(cheapest(denoiser, w_all), count)
    return Prepared(made, chosen, cond, w_all, grid, shape, dtype, device)


def _checked_w(w: object, like: Tensor, w_range: tuple[float, float] | None) -> Tensor:
    try:
        given = torch.as_tensor(w, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise RangeError(
            f"w must be a number or one number per image, got {w!r}. Pass one, for example w=2.0."
        ) from None
    out = as_w(given, like, w_range)
    if float(out.abs().max()) > W_LIMIT:
        raise RangeError(
            f"w must lie in [{-W_LIMIT:g}, {W_LIMIT:g}], got {w}. Choose a smaller w; most models "
            "are used at 0 to 10."
        )
    return out


def _check_states(z: object, traits: Traits) -> None:
    if z is None:
        return
    if not isinstance(z, Tensor) or not z.is_floating_point():
        found = f"{z.dtype}" if isinstance(z, Tensor) else f"a {type(z).__name__}"
        raise ShapeError(
            f"images and states must be a floating-point tensor (B, *D), got {found}. Images of "
            "bytes become one by x = torch.as_tensor(images).float() / 127.5 - 1."
        )
    if traits.dtype is not None and z.dtype != traits.dtype:
        raise ShapeError(
            f"images and states must have the dtype of the model, {traits.dtype}, got {z.dtype}. "
            f"Convert them: z.to({traits.dtype})."
        )


def _sampler(name: str | None, traits: Traits) -> Sampler:
    made_for = traits.sampler
    if name is not None and made_for is not None and name != made_for:
        get_sampler(name)
        raise RangeError(
            f"this model was made for the {made_for!r} sampler, got sampler {name!r}. Leave the "
            f"sampler out, or use a model that was made for {name!r}."
        )
    chosen = get_sampler(name or made_for or "deterministic")
    if chosen.jumps and made_for != chosen.name:
        raise RangeError(
            f"the sampler {chosen.name!r} needs a model that was made for it, which jumps to clean "
            "from any angle, and this model was not. Leave the sampler out, or use a consistency "
            "student."
        )
    return chosen


def _steps(steps: int | None, traits: Traits, sampler: Sampler) -> int:
    if steps is None:
        if traits.steps is not None and len(traits.steps) > 1:
            raise RangeError(
                f"this model was made for {_listed(traits.steps)} steps: pass one of them, for "
                f"example steps={traits.steps[0]} (--steps {traits.steps[0]})."
            )
        if not traits.steps:
            some = _some_steps(traits)
            raise RangeError(
                f"This model accepts any number of steps: pass one, for example steps={some} "
                f"(--steps {some})."
            )
        return traits.steps[0]
    steps = whole_number(steps, "steps", 1)
    if traits.steps is not None and steps not in traits.steps:
        raise RangeError(
            f"this model was made for {_listed(traits.steps)} steps ({sampler.name}), got steps = "
            f"{steps}. Use steps={traits.steps[-1]}, or the model of the chain that was made for "
            f"{steps}."
        )
    return steps


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))


def _some_steps(traits: Traits) -> int:
    """Return a number of steps that the model's clock has."""
    for steps in (64, 50):
        try:
            traits.clock(steps)
        except FewstepError:
            continue
        return steps
    return 1


def _shape(
    z: Tensor | None,
    shape: tuple[int, ...] | None,
    traits: Traits,
    total: int,
    sampler: Sampler,
) -> tuple[int, ...]:
    if z is None and sampler.encodes:
        raise ShapeError(
            "an encoder starts from images, and none were given. Pass them as z=(B, *D), or use "
            "`fewstep encode` on the command line."
        )
    found = tuple(z.shape[1:]) if z is not None else shape or traits.shape
    if found is None:
        raise ShapeError(
            "the shape of one example must be known, and this model does not say it: pass "
            "shape=(3, 32, 32), for example, or z=."
        )
    if z is not None and (z.ndim == 0 or len(z) != total):
        raise ShapeError(
            f"there must be as many states as conditions, got {len(z) if z.ndim else 'a scalar'} "
            f"and {total}. Pass one condition per image."
        )
    if traits.shape is not None and found != traits.shape:
        raise ShapeError(
            f"one example must have the shape {traits.shape} of this model, got {found}. Resize "
            "the images, or use a model of their shape."
        )
    return found
