"""Encode, decode, transfer, image-to-image, inpainting: against exact answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fewstep
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser, Traits
from fewstep.core.grid import Grid, cosine
from fewstep.errors import RangeError, ShapeError
from fewstep.testing import Gaussian, Mixture

EXACT = Gaussian(0.3, 0.4)
MEANS = torch.tensor([[[-1.0, 0.5, 2.0]], [[0.7, -0.2, 0.1]]], dtype=torch.float64)
PAIR = Mixture(MEANS, 0.4)


def some(count: int = 6, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, dtype=torch.float64, generator=g)


def of(k: int, count: int = 6) -> Tensor:
    return torch.full((count,), k)


@dataclass(frozen=True)
class Made:
    """A denoiser that says what it was made for."""

    inner: Denoiser
    traits: Traits
    passes: int = 1

    def __call__(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        return self.inner(z, phi, cond, w)


def walked(grid: Grid) -> float:
    """What DDIM on these angles multiplies the distance to the mean by; any direction."""
    s2, product = EXACT.std**2, 1.0
    for phi, to in pairwise(grid):
        turned = math.cos(phi) * math.cos(to) * s2 + math.sin(phi) * math.sin(to)
        product *= turned / (math.cos(phi) ** 2 * s2 + math.sin(phi) ** 2)
    return product


@pytest.mark.parametrize("steps", [1, 2, 8, 64])
def test_encoding_a_gaussian_is_the_product_walked_backwards(steps: int) -> None:
    x = EXACT.mean + EXACT.std * some()
    z = fewstep.encode(EXACT, x, of(0), steps=steps)
    expected = walked(cosine(steps)[::-1]) * (x - EXACT.mean)
    assert float((z - expected).abs().max()) < 1e-12


def test_decode_undoes_encode_to_first_order() -> None:
    x = EXACT.mean + EXACT.std * some()
    errors = []
    for steps in (64, 128, 256):
        z = fewstep.encode(EXACT, x, of(0), steps=steps)
        errors.append(float((fewstep.decode(EXACT, z, of(0), steps=steps) - x).abs().max()))
    assert [a / b for a, b in pairwise(errors)] == [pytest.approx(2.0, abs=0.1)] * 2


def test_transfer_between_two_gaussians_moves_the_mean() -> None:
    """One component a class, one spread: what is kept is the offset from the mean."""
    x = MEANS[0] + 0.4 * some()
    errors = []
    for steps in (256, 512):
        out = fewstep.transfer(PAIR, PAIR, x, of(0), of(1), steps=steps)
        errors.append(float((out.x - (x - MEANS[0] + MEANS[1])).abs().max()))
        assert float((out.z - (x - MEANS[0]) / 0.4).abs().max()) < 0.05
    assert errors[1] < 0.01
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.15)


def test_transfer_guides_the_two_ways_apart() -> None:
    teacher = PAIR.guided()
    x, steps = MEANS[0] + 0.4 * some(), 16
    out = fewstep.transfer(teacher, teacher, x, of(0), of(1), w=2.0, w_from=0.5, steps=steps)
    z = fewstep.sample(teacher, of(0), w=0.5, steps=steps, sampler="encode", z=x)
    assert torch.equal(out.z, z)
    assert torch.equal(out.x, fewstep.sample(teacher, of(1), w=2.0, steps=steps, z=z))


def test_transfer_takes_models_of_different_steps() -> None:
    encoder = Made(PAIR, Traits(steps=(4,), sampler="encode", shape=(3,)))
    decoder = Made(PAIR, Traits(steps=(2,), sampler="deterministic", shape=(3,)))
    x = MEANS[0] + 0.4 * some()
    out = fewstep.transfer(encoder, decoder, x, of(0), of(1))
    z = fewstep.encode(PAIR, x, of(0), steps=4)
    assert torch.equal(out.z, z)
    assert torch.equal(out.x, fewstep.decode(PAIR, z, of(1), steps=2))


def short(steps: int) -> Grid:
    return tuple(0.9 * phi for phi in cosine(steps))


@pytest.mark.parametrize(
    ("encoder", "decoder", "kind", "says"),
    [
        (Traits(shape=(3,)), Traits(shape=(4,)), ShapeError, "of one shape"),
        (Traits(clock=short), Traits(), RangeError, "clock"),
        (Traits(sampler="deterministic", steps=(4,)), Traits(), RangeError, "cannot encode"),
        (Traits(), Traits(sampler="encode", steps=(4,)), RangeError, "cannot decode"),
        (Traits(), Traits(sampler="stochastic", steps=(4,)), RangeError, "cannot decode"),
        (Traits(w_range=(1.0, 4.0)), Traits(), RangeError, r"w = 0 is outside"),
        (Traits(), Traits(w_range=(0.0, 1.0)), RangeError, r"w = 2 is outside"),
    ],
)
def test_models_that_do_not_belong_together(
    encoder: Traits, decoder: Traits, kind: type[Exception], says: str
) -> None:
    models = Made(PAIR, encoder), Made(PAIR, decoder)
    with pytest.raises(kind, match=says):
        fewstep.transfer(*models, MEANS[0] + some(), of(0), of(1), w=2.0, steps=4)


@given(t=st.integers(0, 7), scale=st.floats(0.1, 10.0))
def test_an_interpolation_keeps_the_norm_and_the_angles_even(t: int, scale: float) -> None:
    a, b = (scale * v / v.norm() for v in some(2, seed=3))
    arc = fewstep.interpolate(a, b, 9)
    assert torch.allclose(arc[[0, -1]], torch.stack([a, b]), atol=1e-12 * scale)
    assert torch.allclose(arc.norm(dim=1), torch.full((9,), scale, dtype=torch.float64))
    step = torch.arccos((a @ b / scale**2).clamp(-1, 1)) / 8
    assert float(torch.arccos((arc[t] @ arc[t + 1]) / scale**2)) == pytest.approx(float(step))


def test_an_interpolation_of_a_noise_with_itself_stays() -> None:
    a = some(1)[0]
    assert torch.allclose(fewstep.interpolate(a, a, 3), a.expand(3, -1))


@pytest.mark.parametrize(
    ("a", "b", "count", "kind"),
    [
        (torch.ones(3), torch.ones(4), 3, ShapeError),
        (torch.ones(3), torch.ones(3), 1, RangeError),
        (torch.ones(3), -torch.ones(3), 3, RangeError),
    ],
)
def test_no_interpolation(a: Tensor, b: Tensor, count: int, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        fewstep.interpolate(a, b, count)


@pytest.mark.parametrize("sampler", ["deterministic", "stochastic", "heun"])
def test_image_to_image_at_strength_one_is_sampling(sampler: str) -> None:
    model = Made(PAIR.guided(), Traits(sampler=sampler, steps=(4,)), passes=2)
    edited = fewstep.img2img(model, some(), of(1), strength=1.0, w=1.5, seed=3)
    again = fewstep.sample(model, of(1), w=1.5, seed=3, z=None, shape=(3,))
    # sample draws in float32 unless a state is given; the edit follows its images.
    assert torch.allclose(edited, again.double(), atol=1e-5)


@pytest.mark.parametrize(("strength", "moves"), [(0.25, 1), (0.5, 2), (0.74, 2), (1.0, 4)])
def test_image_to_image_on_a_gaussian(strength: float, moves: int) -> None:
    x, grid = some(), cosine(4)[4 - moves :]
    eps = fewstep.core.seed.Noise(5, range(6)).draw((3,), torch.float64, torch.device("cpu"))
    start = eps if moves == 4 else math.cos(grid[0]) * x + math.sin(grid[0]) * eps
    expected = EXACT.mean + walked(grid) * (start - math.cos(grid[0]) * EXACT.mean)
    found = fewstep.img2img(EXACT, x, of(0), strength=strength, steps=4, seed=5)
    assert float((found - expected).abs().max()) < 1e-12


@pytest.mark.parametrize("strength", [0.0, 0.2, 1.01, -1.0, math.nan])
def test_a_strength_that_is_none(strength: float) -> None:
    with pytest.raises(RangeError, match=r"\[0\.25, 1\]"):
        fewstep.img2img(EXACT, some(), of(0), strength=strength, steps=4)


@pytest.mark.parametrize("sampler", ["deterministic", "stochastic", "heun"])
def test_inpainting_keeps_what_is_known(sampler: str) -> None:
    model = Made(PAIR.guided(), Traits(sampler=sampler, steps=(4,)), passes=2)
    x, mask = some(), torch.tensor([1.0, 0.0, 0.0])
    out = fewstep.inpaint(model, x, mask, of(1), w=1.0, seed=1)
    assert torch.equal(out[:, 1:], x[:, 1:])
    assert bool((out[:, 0] != x[:, 0]).all())
    everything = fewstep.inpaint(model, x, torch.ones(3), of(1), w=1.0, seed=1)
    assert torch.equal(everything, fewstep.img2img(model, x, of(1), strength=1.0, w=1.0, seed=1))
    nothing = fewstep.inpaint(model, x, torch.zeros(6, 3), of(1), w=1.0, seed=1)
    assert torch.equal(nothing, x)


def test_inpainting_takes_the_hint_of_what_is_known() -> None:
    """Two far components in one class: the known coordinate says which one it is.

    Putting the known part back is no exact conditioning; half would be right by chance.
    """
    means = torch.tensor([[[-3.0, -3.0, 0.0], [3.0, 3.0, 0.0]]], dtype=torch.float64)
    model, side = Mixture(means, 0.2), torch.tensor([-3.0, 3.0]).repeat(100).double()
    x = torch.stack([side, torch.zeros(200).double(), torch.zeros(200).double()], dim=1)
    out = fewstep.inpaint(model, x, torch.tensor([0.0, 1.0, 1.0]), of(0, 200), steps=64)
    assert float((out[:, 1].sign() == side.sign()).double().mean()) > 0.75
    assert torch.equal(out[:, 0], side)


@pytest.mark.parametrize("size", [1, 4])
def test_edits_do_not_depend_on_the_batch(size: int) -> None:
    model = Made(PAIR.guided(), Traits(sampler="stochastic", steps=(4,)), passes=2)
    x, mask = some(), (some(6, seed=8) > 0).double()
    for size_ in (None, size):
        edited = fewstep.img2img(model, x, of(1), strength=0.5, w=1.0, batch_size=size_)
        filled = fewstep.inpaint(model, x, mask, of(1), w=1.0, batch_size=size_)
        if size_ is None:
            whole = edited, filled
    assert torch.allclose(edited, whole[0], atol=1e-12)
    assert torch.allclose(filled, whole[1], atol=1e-12)


def test_edits_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match="mask"):
        fewstep.inpaint(EXACT, some(), torch.ones(4), of(0), steps=2)
    with pytest.raises(ShapeError, match="as many"):
        fewstep.img2img(EXACT, some(), of(0, 5), strength=1.0, steps=2)
    encoder = Made(EXACT, Traits(sampler="encode", steps=(2,)))
    with pytest.raises(RangeError, match="encoder"):
        fewstep.inpaint(encoder, some(), torch.ones(3), of(0))
