"""Image editing: encode to noise and decode, transfer, interpolate, image-to-image, inpainting.

Everything here works on any denoiser: a few-step student, its encoder, or the guided teacher.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.core.angle import add_noise
from fewstep.core.cond import Given
from fewstep.core.denoiser import Denoiser, traits_of
from fewstep.core.finite import check_finite
from fewstep.core.sample import Prepared, joined, prepare, sample, whole_number
from fewstep.core.samplers import Move, Sampler, get_sampler
from fewstep.core.samplers.loop import Velocity
from fewstep.errors import RangeError, ShapeError

ENCODE = "encode"
MOST = 10_000  # noises of one interpolation


def encode(
    encoder: Denoiser,
    x: Tensor,
    cond: Given,
    *,
    w: float | Tensor = 0.0,
    steps: int | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Return the noise (B, *D) that images x (B, *D) are decoded from. Source: math.md 7.

    Args:
        encoder: an encoding student; or a model that takes any number of steps, which is then run
            backwards (DDIM inversion).
        x: images, in [-1, 1] for pixel models.
        cond: what the images show: a condition batch of B, or class ids as in `sample`.
        w: guidance weight; usually 0 for encoding.
        steps: number of steps; None for a student.
        batch_size: encode at most this many at a time; the result does not depend on it.

    Raises:
        RangeError: the model is a decoding student, or as `sample` raises.
        ShapeError, NonFiniteError: as `sample` raises.
    """
    made_for = traits_of(encoder).sampler
    if made_for not in (None, ENCODE):
        raise RangeError(
            f"encoding requires an encoder, got a model made for the {made_for!r} sampler, which "
            "cannot encode. Use a student of direction encode, or a model that takes any number "
            "of steps."
        )
    return sample(encoder, cond, w=w, steps=steps, sampler=ENCODE, z=x, batch_size=batch_size)


def decode(
    decoder: Denoiser,
    z: Tensor,
    cond: Given,
    *,
    w: float | Tensor = 0.0,
    steps: int | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Return the images x (B, *D) that a given noise z (B, *D) is decoded to under cond.

    The inverse of `encode`, with the same arguments. Raises RangeError for an encoder and for a
    model of a sampler that adds noise of its own, and as `sample` raises.
    """
    made_for = traits_of(decoder).sampler
    chosen = get_sampler(made_for or "deterministic")
    if chosen.encodes or chosen.order is None:
        raise RangeError(
            "decoding a given noise requires the deterministic sampler, got a model made for the "
            f"{made_for!r} sampler, which cannot decode it. Use a deterministic student."
        )
    return sample(decoder, cond, w=w, steps=steps, sampler=chosen.name, z=z, batch_size=batch_size)


class Transfer(NamedTuple):
    """The transferred images x (B, *D), and the noise z (B, *D) between encoder and decoder."""

    x: Tensor
    z: Tensor


def transfer(
    encoder: Denoiser,
    decoder: Denoiser,
    x: Tensor,
    cond_from: Given,
    cond_to: Given,
    *,
    w: float | Tensor = 0.0,
    w_from: float | Tensor = 0.0,
    steps: int | None = None,
    batch_size: int | None = None,
) -> Transfer:
    """Return x (B, *D) encoded under cond_from and decoded under cond_to. Source: math.md 7.

    The two models may be students of different teachers, if their states have the same shape.

    Args:
        encoder: as in `encode`; a guided teacher can be both encoder and decoder.
        decoder: as in `decode`.
        x: images.
        cond_from: what x shows: a condition batch of B, or class ids as in `sample`.
        cond_to: what to draw, in the same form.
        w: guidance weight of the decoder.
        w_from: guidance weight of the encoder.
        steps: number of steps of both, for models that take any number.
        batch_size: transfer at most this many at a time; the result does not depend on it.

    Raises:
        RangeError: a w outside its model's range, or models on different clocks.
        ShapeError: models of different shapes, or as `sample` does.
    """
    check_together(encoder, decoder)
    one = [len(traits_of(d).steps or ()) == 1 for d in (encoder, decoder)]
    own = [None if fixed else steps for fixed in one]
    z = encode(encoder, x, cond_from, w=w_from, steps=own[0], batch_size=batch_size)
    out = decode(decoder, z, cond_to, w=w, steps=own[1], batch_size=batch_size)
    return Transfer(out, z)


def check_together(encoder: Denoiser, decoder: Denoiser) -> None:
    """Raise ShapeError or RangeError unless the decoder starts where the encoder ends."""
    ours, theirs = traits_of(encoder), traits_of(decoder)
    if None not in (ours.shape, theirs.shape) and ours.shape != theirs.shape:
        raise ShapeError(
            f"encoder and decoder must work on one shape, got {ours.shape} and {theirs.shape}. Use "
            "two models of one shape."
        )
    end, start = (t.clock((t.steps or (1,))[0]) for t in (ours, theirs))
    if abs(end[0] - start[0]) > 1e-6 or abs(end[-1] - start[-1]) > 1e-6:
        raise RangeError(
            "the decoder's clock must start where the encoder's ends, got an encoder from "
            f"{end[-1]:.6f} to {end[0]:.6f} radians and a decoder from {start[0]:.6f} to "
            f"{start[-1]:.6f}. Use two models on one clock."
        )


def interpolate(z_a: Tensor, z_b: Tensor, count: int) -> Tensor:
    """Return count noises (count, *D) on the arc from z_a (*D) to z_b (*D), including both.

    Spherical linear interpolation: `(sin((1-t) a) z_a + sin(t a) z_b) / sin a` with a the angle
    between them, so that the noises in between have the norm of the two ends.

    Raises:
        ShapeError: z_a and z_b differ in shape.
        RangeError: count is outside [2, 10,000], or the noises are opposite, so that no single
            arc connects them.
        NonFiniteError: z_a or z_b holds NaN or infinity.
    """
    if z_a.shape != z_b.shape:
        raise ShapeError(
            f"the two noises must have one shape, got {tuple(z_a.shape)} and {tuple(z_b.shape)}. "
            "Encode both with one model."
        )
    if not 2 <= whole_number(count, "count") <= MOST:
        raise RangeError(
            f"count must lie in [2, {MOST}], both ends included, got {count}. Choose a number in "
            "between, for example 9."
        )
    check_finite(z_a, "the first noise")
    check_finite(z_b, "the second noise")
    a, b = z_a.double().flatten(), z_b.double().flatten()
    cosine = (a @ b / (a.norm() * b.norm()).clamp_min(1e-12)).clamp(-1.0, 1.0)
    t = torch.linspace(0.0, 1.0, count, dtype=torch.float64, device=a.device)[:, None]
    angle = torch.arccos(cosine)
    if float(angle) > math.pi - 1e-6:
        raise RangeError(
            "the two noises must not be opposite, got an angle of pi: many arcs connect them. Use "
            "another noise for one end."
        )
    if float(angle) < 1e-6:  # one noise twice: the arc is a point, and sin a is 0
        mixed = torch.lerp(a, b, t)
    else:
        mixed = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    return mixed.to(z_a.dtype).reshape(count, *z_a.shape)


def img2img(
    denoiser: Denoiser,
    x: Tensor,
    cond: Given,
    *,
    strength: float,
    w: float | Tensor = 0.0,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """Return x (B, *D) redrawn under cond, after noise was added to it (image-to-image).

    Runs the last `int(strength N)` of the model's N steps, as diffusers counts them. At strength
    1 nothing of x is left, and the result equals `sample`. Source: math.md 8.

    Args:
        denoiser: a decoding student, or a model that takes any number of steps.
        x: images.
        cond: what to draw: a condition batch of B, or class ids as in `sample`.
        strength: in [1/N, 1].
        w: guidance weight.
        steps: N; None for a student.
        seed: of the noise, an integer. Each image has its own random stream.
        batch_size: edit at most this many at a time; the result does not depend on it.

    Raises:
        RangeError: a strength outside [1/N, 1], an encoder, or as `sample` raises.
        ShapeError, NonFiniteError: as `sample` raises.
    """
    prepared = _decoding(denoiser, x, cond, w, steps)
    grid = _from(prepared, strength)
    out = []
    for part, noise in prepared.batches(seed, batch_size):
        z = _start(prepared, x[part], prepared.noise(noise), grid)
        out.append(prepared.run(z, part, noise, grid=grid))
    return joined(out)


def inpaint(
    denoiser: Denoiser,
    x: Tensor,
    mask: Tensor,
    cond: Given,
    *,
    strength: float = 1.0,
    w: float | Tensor = 0.0,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """Return x (B, *D) with the masked part redrawn under cond, and the rest unchanged.

    After each step the unmasked part is replaced by x with noise of that angle; at the end it is
    x itself, bit for bit. Source: math.md 8.

    Args:
        denoiser: a decoding student, or a model that takes any number of steps.
        x: images.
        mask: 1 (or True) where to draw, 0 where to keep; (B or 1, 1 or C, H, W), or (H, W).
            Values above 0.5 count as 1.
        cond: what to draw: a condition batch of B, or class ids as in `sample`.
        strength: how far the masked part is moved toward noise first, as in `img2img`.
        w: guidance weight.
        steps: N; None for a student.
        seed: of the noise, an integer. Each image has its own random stream.
        batch_size: edit at most this many at a time; the result does not depend on it.

    Raises:
        RangeError: as `img2img` raises.
        ShapeError: a mask whose shape does not fit x, or as `sample` raises.
        NonFiniteError: a mask that holds NaN or infinity, or as `sample` raises.
    """
    prepared = _decoding(denoiser, x, cond, w, steps)
    grid = _from(prepared, strength)
    drawn = _drawn(mask, x)
    out = []
    for part, noise in prepared.batches(seed, batch_size):
        eps = prepared.noise(noise)
        known = _Known(x[part].to(prepared.device), drawn[part].to(prepared.device), eps)
        z = _start(prepared, known.x, eps, grid)
        sampler = known.imposed_on(prepared.sampler)
        out.append(prepared.run(z, part, noise, grid=grid, sampler=sampler))
    return joined(out)


def _drawn(mask: object, x: Tensor) -> Tensor:
    """Return a mask as booleans of the shape of x: True where to draw."""
    found = f"a {type(mask).__name__}"
    if isinstance(mask, Tensor):
        check_finite(mask, "the mask", "Use 1 where to draw and 0 where to keep.")
        try:
            return (mask > 0.5).expand(x.shape)
        except RuntimeError:
            found = str(tuple(mask.shape))
    raise ShapeError(
        f"the mask must be a tensor that fits images of shape {tuple(x.shape)}, got {found}. Pass "
        "(H, W) or (B, 1, H, W)."
    )


@dataclass(frozen=True)
class _Known:
    x: Tensor
    drawn: Tensor
    eps: Tensor

    def imposed_on(self, sampler: Sampler) -> Sampler:
        """Return the sampler with the known part restored after each step."""

        def step(velocity: Velocity, z: Tensor, move: Move) -> Tensor:
            z = sampler.step(velocity, z, move)
            known = self.x if move.to == 0.0 else add_noise(self.x, self.eps, move.to)
            return torch.where(self.drawn, z, known)

        return replace(sampler, step=step)


def _decoding(
    denoiser: Denoiser, x: Tensor, cond: Given, w: float | Tensor, steps: int | None
) -> Prepared:
    name = traits_of(denoiser).sampler
    if name is not None and get_sampler(name).encodes:
        raise RangeError(
            "drawing requires a decoding student or a model that takes any number of steps, got an "
            "encoder. Use its decoder."
        )
    return prepare(denoiser, cond, w=w, steps=steps, sampler=name, z=x)


def _from(prepared: Prepared, strength: float) -> tuple[float, ...]:
    total = len(prepared.grid) - 1
    number = isinstance(strength, Real) and 0.0 < strength <= 1.0
    # In binary, 0.3 times 10 steps is slightly less than 3.
    moves = int(strength * total + 1e-9) if number else 0
    if moves < 1:
        raise RangeError(
            f"strength must lie in [{1 / total:g}, 1] for {total} steps, got {strength}. Choose a "
            f"multiple of {1 / total:g}."
        )
    return prepared.grid[total - moves :]


def _start(prepared: Prepared, x: Tensor, eps: Tensor, grid: tuple[float, ...]) -> Tensor:
    # At the start of the full grid the state is pure noise, as in `sample`.
    full = len(grid) == len(prepared.grid)
    return eps if full else add_noise(x.to(prepared.device), eps, grid[0])
