"""Grids: where samplers stand, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from fewstep.core.angle import phi_from_alphas_cumprod
from fewstep.core.grid import check_grid, cosine, discrete, equal_angles, shifted_flow
from fewstep.errors import GridError


@given(steps=st.integers(1, 300))
def test_cosine_has_equal_steps_and_both_ends(steps: int) -> None:
    grid = check_grid(cosine(steps))
    assert (grid[0], grid[-1], len(grid)) == (math.pi / 2, 0.0, steps + 1)
    for a, b in zip(grid, grid[1:], strict=False):
        assert a - b == pytest.approx(math.pi / (2 * steps))


@given(steps=st.integers(1, 64))
def test_a_grid_of_twice_the_steps_contains_the_grid(steps: int) -> None:
    assert cosine(2 * steps)[::2] == pytest.approx(cosine(steps), abs=1e-15)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 8, 50])
def test_discrete_is_the_stock_trailing_grid_where_steps_divide_the_table(steps: int) -> None:
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    table = phi_from_alphas_cumprod(scheduler.alphas_cumprod)
    grid = discrete(table, steps)
    assert list(grid[:-1]) == [float(table[int(t)]) for t in scheduler.timesteps]
    assert grid[-1] == 0.0


@pytest.mark.parametrize("steps", [3, 7, 16])
def test_discrete_refuses_steps_that_stock_schedulers_would_take_elsewhere(steps: int) -> None:
    table = torch.linspace(0.01, 1.5, 1000)
    with pytest.raises(GridError, match=r"does not divide .* Use one of"):
        discrete(table, steps)
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    steps_to = [int(t) - 1000 // steps for t in scheduler.timesteps]
    assert steps_to != [*map(int, scheduler.timesteps[1:]), -1]


def test_shifted_flow() -> None:
    assert shifted_flow(4)[2] == pytest.approx(math.pi / 4)
    grid = shifted_flow(5, shift=3.0)
    assert (grid[0], grid[-1]) == (pytest.approx(math.pi / 2), 0.0)
    s = 3 * 0.6 / (1 + 2 * 0.6)
    assert grid[2] == pytest.approx(math.atan2(s, 1 - s))


def test_equal_angles_go_both_ways() -> None:
    assert equal_angles(1.0, 0.4, 3) == pytest.approx((1.0, 0.8, 0.6, 0.4))
    assert equal_angles(0.4, 1.0, 2) == pytest.approx((0.4, 0.7, 1.0))


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ((1.0,), "at least 2"),
        ((0.0, 1.0), "Reverse it"),
        ((1.0, 1.0, 0.0), "repeated"),
        ((2.0, 0.0), "pi/2"),
        ((1.0, -0.1), "pi/2"),
        ((math.nan, 0.0), "pi/2"),
    ],
)
def test_a_grid_that_is_none(grid: tuple[float, ...], says: str) -> None:
    with pytest.raises(GridError, match=says):
        check_grid(grid)


def test_no_steps_and_no_shift() -> None:
    with pytest.raises(GridError, match="at least 1 step"):
        cosine(0)
    with pytest.raises(GridError, match="above 0"):
        shifted_flow(4, shift=0.0)
