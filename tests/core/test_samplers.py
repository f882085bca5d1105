"""Samplers against exact answers. The suite walks SAMPLERS: a new one is tested by being there."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fewstep.core.samplers
from fewstep.core.grid import Grid, cosine
from fewstep.core.sample import sample
from fewstep.core.samplers import SAMPLERS, Progress, Sampler, get_sampler, run
from fewstep.core.seed import Noise
from fewstep.errors import RangeError, ShapeError
from fewstep.testing import Counting, Gaussian, Mixture, check_sampler

TEACHER = Gaussian(0.3, 0.4)


def noise(count: int = 9) -> torch.Tensor:
    return Noise(0, range(count)).draw((2,), torch.float64, torch.device("cpu"))


def drive(sampler: Sampler, z: torch.Tensor, grid: Grid) -> torch.Tensor:
    none = torch.zeros(len(z), dtype=z.dtype)
    return run(sampler, TEACHER, z, none, none, grid, Noise(0, range(len(z))))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_passes_the_public_check(name: str) -> None:
    assert len(check_sampler(SAMPLERS[name])) >= 14


def test_every_file_of_samplers_is_listed() -> None:
    folder = Path(fewstep.core.samplers.__file__).parent
    files = {p.stem for p in folder.glob("*.py")} - {"__init__", "loop"}
    assert files == set(SAMPLERS)


@given(steps=st.integers(1, 128))
def test_ddim_on_a_gaussian_is_the_product(steps: int) -> None:
    z, grid = noise(), cosine(steps)
    expected = TEACHER.mean + TEACHER.factor(grid) * z
    assert float((drive(SAMPLERS["deterministic"], z, grid) - expected).abs().max()) < 1e-12


@pytest.mark.parametrize(("steps", "factor"), [(2, 0.1379), (4, 0.2479), (8, 0.3186), (64, 0.3890)])
def test_the_product_is_what_the_mathematics_says(steps: int, factor: float) -> None:
    assert TEACHER.factor(cosine(steps)) == pytest.approx(factor, abs=5e-5)


@given(
    inner=st.lists(st.floats(0.02, 1.55), min_size=1, max_size=6, unique=True).map(
        lambda angles: sorted(angles, reverse=True)
    )
)
def test_ddim_on_an_uneven_grid_is_the_product(inner: list[float]) -> None:
    grid = (math.pi / 2, *inner, 0.0)
    z = noise()
    expected = TEACHER.mean + TEACHER.factor(grid) * z
    assert float((drive(SAMPLERS["deterministic"], z, grid) - expected).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("name", "order", "slack"),
    [("deterministic", 1.0, 0.05), ("heun", 2.0, 0.1), ("encode", 1.0, 0.05)],
)
def test_measured_order(name: str, order: float, slack: float) -> None:
    z = noise()
    exact, start = 0.3 + 0.4 * z, z
    if name == "encode":
        exact, start = start, exact
    errors = [
        float((drive(SAMPLERS[name], start, cosine(n)) - exact).abs().max()) for n in (64, 128, 256)
    ]
    measured = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert measured == [pytest.approx(order, abs=slack)] * 2


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_heun_takes_all_noise_away_where_x_is_the_same_all_along(steps: int) -> None:
    """At phi = 0 the model of nearly constant data answers 0, and must not be asked."""
    z = noise()
    zero = torch.zeros(len(z), dtype=z.dtype)
    x = run(SAMPLERS["heun"], Gaussian(0.7, 1e-4), z, zero, zero, cosine(steps))
    assert float((x - 0.7).abs().max()) < 1e-3


def test_the_encoder_undoes_the_decoder_where_v_is_constant_in_x_and_eps() -> None:
    """N(0, 0): v = z tan-free; a point mass at m moves on a circle, which rotations follow."""
    point = Gaussian(0.7, 0.0)
    z = noise()
    zero = torch.zeros(len(z), dtype=z.dtype)
    x = run(SAMPLERS["deterministic"], point, z, zero, zero, cosine(5))
    assert float((x - 0.7).abs().max()) < 1e-12


def test_stochastic_moves_are_two_down_one_up() -> None:
    grid = cosine(4)
    moves = SAMPLERS["stochastic"].moves(grid)
    assert [(m.phi, m.to, m.back) for m in moves] == [
        (grid[0], grid[2], grid[1]),
        (grid[1], grid[3], grid[2]),
        (grid[2], grid[4], grid[3]),
        (grid[3], grid[4], grid[4]),
    ]
    assert SAMPLERS["stochastic"].moves(cosine(1)) == SAMPLERS["deterministic"].moves(cosine(1))


def test_evaluations_count_both_passes_of_a_guided_pair() -> None:
    mixture = Mixture(torch.zeros(2, 1, 2), 0.5)
    for name, expected in (("deterministic", 16), ("stochastic", 16), ("heun", 30)):
        counting = Counting(mixture.guided())
        sampler = SAMPLERS[name]
        assert sampler.evaluations(counting, cosine(8)) == expected
        sample(counting, torch.zeros(3, dtype=torch.long), steps=8, shape=(2,), sampler=name)
        assert counting.evaluations == 3 * expected


@pytest.mark.parametrize("name", ["deterministic", "stochastic", "heun"])
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    g = torch.Generator().manual_seed(0)
    teacher = Mixture(torch.randn(3, 2, 2, generator=g), 0.3).guided()
    cond = torch.arange(7) % 3
    w = torch.linspace(0, 3, 7)

    def draw(size: int | None) -> torch.Tensor:
        return sample(
            teacher, cond, w=w, steps=5, seed=4, shape=(2,), sampler=name, batch_size=size
        )

    whole = draw(None)
    for size in (1, 2, 3, 100):
        torch.testing.assert_close(draw(size), whole, rtol=0, atol=1e-6)


def test_another_seed_is_another_sample_and_the_same_seed_the_same() -> None:
    cond = torch.zeros(4, dtype=torch.long)
    a, b, c = (sample(TEACHER, cond, steps=3, shape=(2,), seed=s) for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not torch.equal(a[0], a[1])


def test_callbacks_are_told_of_every_move() -> None:
    progress: list[Progress] = []
    x = sample(TEACHER, torch.zeros(2), steps=4, shape=(2,), callback=progress.append)
    assert [p.index for p in progress] == [0, 1, 2, 3]
    assert [p.phi for p in progress] == list(cosine(4)[1:])
    assert torch.equal(progress[-1].z, x)


def test_encoding_starts_from_images() -> None:
    x = 0.3 + 0.4 * noise()
    z = sample(TEACHER, torch.zeros(9), steps=256, sampler="encode", z=x)
    assert float((z - noise()).abs().max()) < 0.02
    with pytest.raises(ShapeError, match=r"starts from images, .*`fewstep encode`"):
        sample(TEACHER, torch.zeros(9), steps=4, sampler="encode", shape=(2,))


def test_an_unknown_sampler_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(RangeError, match="Did you mean 'stochastic'"):
        get_sampler("stocastic")


def test_the_bare_loop_needs_noise_where_the_sampler_adds_some() -> None:
    zero = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="needs noise"):
        run(SAMPLERS["stochastic"], TEACHER, noise(2), zero, zero, cosine(4))
