"""Images in, images out: to noise and back, from class to class, half way, or in a hole.

Everything here works on any denoiser: a few-step student, its encoder, or the guided teacher.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.angle import add_noise
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser, traits_of
from fewstep.core.sample import Walk, prepare, sample
from fewstep.core.samplers import Move, Sampler, get_sampler
from fewstep.core.samplers.loop import Velocity
from fewstep.errors import RangeError, ShapeError

ENCODE = "encode"


def encode(
    encoder: Denoiser,
    x: Tensor,
    cond: Cond,
    *,
    w: float | Tensor = 0.0,
    steps: int | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Return the noise (B, *D) that x (B, *D) comes from, under cond. Source: math.md 7.

    Args:
        encoder: an encoding student; or a model that takes any number of steps, whose DDIM is
            then walked backwards (DDIM inversion).
        x: images, in [-1, 1] for pixel models.
        cond: a condition batch of B: what the images show.
        w: guidance weight; 0 is usual here.
        steps: may be left out for a student.
        batch_size: at most so many at a time; the result does not depend on it.

    Raises:
        RangeError: the model is a decoding student, or as `sample` does.
        ShapeError: as `sample` does.
    """
    made_for = traits_of(encoder).sampler
    if made_for not in (None, ENCODE):
        raise RangeError(
            f"this model was made for the {made_for!r} sampler and cannot encode. Use an encoder "
            "(direction: encode), or a model that takes any number of steps."
        )
    return sample(encoder, cond, w=w, steps=steps, sampler=ENCODE, z=x, batch_size=batch_size)


def decode(
    decoder: Denoiser,
    z: Tensor,
    cond: Cond,
    *,
    w: float | Tensor = 0.0,
    steps: int | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Return the images x (B, *D) of the noise z (B, *D), under cond: `encode`'s way back.

    Raises RangeError where the model is an encoder, or made for the stochastic sampler, which
    does not keep to z; and as `sample` does.
    """
    made_for = traits_of(decoder).sampler
    if made_for in (ENCODE, "stochastic"):
        raise RangeError(
            f"this model was made for the {made_for!r} sampler and cannot decode a given noise. "
            "Use a student for the deterministic sampler."
        )
    name = made_for or "deterministic"
    return sample(decoder, cond, w=w, steps=steps, sampler=name, z=z, batch_size=batch_size)


class Transfer(NamedTuple):
    """What came out, x (B, *D), and the noise z (B, *D) by which it went."""

    x: Tensor
    z: Tensor


def transfer(
    encoder: Denoiser,
    decoder: Denoiser,
    x: Tensor,
    cond_from: Cond,
    cond_to: Cond,
    *,
    w: float | Tensor = 0.0,
    w_from: float | Tensor = 0.0,
    steps: int | None = None,
    batch_size: int | None = None,
) -> Transfer:
    """Return x (B, *D), encoded under cond_from, decoded under cond_to. Source: math.md 7.

    The two may be students of different teachers, as long as their states are alike.

    Args:
        encoder: as in `encode`; the guided teacher can be encoder and decoder.
        decoder: as in `decode`.
        x: images.
        cond_from: a condition batch of B: what x shows.
        cond_to: a condition batch of B: what shall be drawn.
        w: guidance weight of the decoder.
        w_from: of the encoder.
        steps: of both, for models that take any.
        batch_size: at most so many at a time; the result does not depend on it.

    Raises:
        RangeError: a w outside its model's range, or models on different clocks.
        ShapeError: models of different shapes, or as `sample` does.
    """
    check_together(encoder, decoder)
    own = [None if traits_of(d).steps else steps for d in (encoder, decoder)]
    z = encode(encoder, x, cond_from, w=w_from, steps=own[0], batch_size=batch_size)
    out = decode(decoder, z, cond_to, w=w, steps=own[1], batch_size=batch_size)
    return Transfer(out, z)


def check_together(encoder: Denoiser, decoder: Denoiser) -> None:
    """Raise ShapeError or RangeError unless the decoder starts where the encoder ends."""
    ours, theirs = traits_of(encoder), traits_of(decoder)
    if None not in (ours.shape, theirs.shape) and ours.shape != theirs.shape:
        raise ShapeError(
            f"the encoder works on examples of shape {ours.shape}, the decoder on {theirs.shape}; "
            "they must be alike. Use two models of one shape."
        )
    end, start = (t.clock((t.steps or (1,))[0]) for t in (ours, theirs))
    if abs(end[0] - start[0]) > 1e-6 or abs(end[-1] - start[-1]) > 1e-6:
        raise RangeError(
            f"the encoder's clock goes from {end[-1]:.6f} to {end[0]:.6f} radians and the "
            f"decoder's from {start[0]:.6f} to {start[-1]:.6f}; the decoder must start where the "
            "encoder ends. Use two models on one clock."
        )


def interpolate(z_a: Tensor, z_b: Tensor, count: int) -> Tensor:
    """Return count noises (count, *D) on the arc from z_a (*D) to z_b (*D), both ends included.

    Spherical: `(sin((1-t) a) z_a + sin(t a) z_b) / sin a`, a the angle between them, so that
    the states between have a norm like the ends'. Raises ShapeError for two shapes, RangeError
    for fewer than 2, or for opposite noises, between which there is no one arc.
    """
    if z_a.shape != z_b.shape:
        raise ShapeError(f"noises of shape {tuple(z_a.shape)} and {tuple(z_b.shape)} differ.")
    if count < 2:
        raise RangeError(f"count = {count}; an interpolation has at least its 2 ends.")
    a, b = z_a.double().flatten(), z_b.double().flatten()
    cosine = (a @ b / (a.norm() * b.norm()).clamp_min(1e-12)).clamp(-1.0, 1.0)
    t = torch.linspace(0.0, 1.0, count, dtype=torch.float64, device=a.device)[:, None]
    angle = torch.arccos(cosine)
    if float(angle) > math.pi - 1e-6:
        raise RangeError("the two noises are opposite; there is no one arc between them.")
    if float(angle) < 1e-6:  # the same noise twice: the arc is a point, and sin a is 0
        mixed = torch.lerp(a, b, t)
    else:
        mixed = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    return mixed.to(z_a.dtype).reshape(count, *z_a.shape)


def img2img(
    denoiser: Denoiser,
    x: Tensor,
    cond: Cond,
    *,
    strength: float,
    w: float | Tensor = 0.0,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """Return x (B, *D) drawn anew under cond, from a state between itself and noise.

    The last `int(strength N)` of the model's N moves are made, as diffusers counts them; at
    strength 1 nothing of x is left, and this is `sample`. Source: math.md 8.

    Args:
        denoiser: a decoding student, or a model that takes any number of steps.
        x: images.
        cond: a condition batch of B: what shall be drawn.
        strength: in [1/N, 1].
        w: guidance weight.
        steps: N; may be left out for a student.
        seed: of the noise; each image has a stream of its own.
        batch_size: at most so many at a time; the result does not depend on it.

    Raises:
        RangeError: a strength that leaves no move to make, an encoder, or as `sample` does.
        ShapeError: as `sample` does.
    """
    walk = _decoding(denoiser, x, cond, w, steps)
    grid = _from(walk, strength)
    out = []
    for part, noise in walk.batches(seed, batch_size):
        z = _start(walk, x[part], walk.noise(noise), grid)
        out.append(walk.run(z, part, noise, grid=grid))
    return torch.cat(out)


def inpaint(
    denoiser: Denoiser,
    x: Tensor,
    mask: Tensor,
    cond: Cond,
    *,
    strength: float = 1.0,
    w: float | Tensor = 0.0,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """Return x (B, *D) with the masked part drawn anew under cond, and the rest as it was.

    After each move the known part is put back at the noise of that angle; at the end it is x
    itself, bit for bit. Source: math.md 8.

    Args:
        denoiser: a decoding student, or a model that takes any number of steps.
        x: images.
        mask: 1 where to draw, 0 where to keep; (B or 1, 1 or C, H, W), or (H, W).
        cond: a condition batch of B: what shall be drawn.
        strength: how far the masked part is carried toward noise first, as in `img2img`.
        w: guidance weight.
        steps: N; may be left out for a student.
        seed: of the noise; each image has a stream of its own.
        batch_size: at most so many at a time; the result does not depend on it.

    Raises:
        RangeError: as `img2img` does.
        ShapeError: a mask that does not fit, or as `sample` does.
    """
    walk = _decoding(denoiser, x, cond, w, steps)
    grid = _from(walk, strength)
    try:
        drawn = (mask > 0.5).expand(x.shape)
    except RuntimeError:
        raise ShapeError(
            f"a mask of shape {tuple(mask.shape)} for images of shape {tuple(x.shape)}; give (H, W)"
            " or (B, 1, H, W)."
        ) from None
    out = []
    for part, noise in walk.batches(seed, batch_size):
        eps = walk.noise(noise)
        known = _Known(x[part].to(walk.device), drawn[part].to(walk.device), eps)
        z = _start(walk, known.x, eps, grid)
        out.append(walk.run(z, part, noise, grid=grid, sampler=known.imposed_on(walk.sampler)))
    return torch.cat(out)


@dataclass(frozen=True)
class _Known:
    x: Tensor
    drawn: Tensor
    eps: Tensor

    def imposed_on(self, sampler: Sampler) -> Sampler:
        """Return the sampler with the known part put back after each step."""

        def step(velocity: Velocity, z: Tensor, move: Move) -> Tensor:
            z = sampler.step(velocity, z, move)
            known = self.x if move.to == 0.0 else add_noise(self.x, self.eps, move.to)
            return torch.where(self.drawn, z, known)

        return replace(sampler, step=step)


def _decoding(
    denoiser: Denoiser, x: Tensor, cond: Cond, w: float | Tensor, steps: int | None
) -> Walk:
    name = traits_of(denoiser).sampler
    if name is not None and get_sampler(name).encodes:
        raise RangeError("this model is an encoder and cannot draw. Use its decoder.")
    if len(x) != conds.batch_size(cond):
        raise ShapeError(
            f"x holds {len(x)} examples and cond {conds.batch_size(cond)}; they must be as many."
        )
    return prepare(denoiser, cond, w=w, steps=steps, sampler=name, z=x)


def _from(walk: Walk, strength: float) -> tuple[float, ...]:
    total = len(walk.grid) - 1
    # A strength such as 0.3 of 10 steps is a hair below 3 in binary.
    moves = int(strength * total + 1e-9) if 0.0 < strength <= 1.0 else 0
    if moves < 1:
        raise RangeError(
            f"strength = {strength:g}; with {total} steps it must lie in [{1 / total:g}, 1], a "
            f"step being {1 / total:g}."
        )
    return walk.grid[total - moves :]


def _start(walk: Walk, x: Tensor, eps: Tensor, grid: tuple[float, ...]) -> Tensor:
    # From the grid's own start nothing of x shall be left, as in `sample`.
    return eps if len(grid) == len(walk.grid) else add_noise(x.to(walk.device), eps, grid[0])
