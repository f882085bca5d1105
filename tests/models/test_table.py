"""A stock scheduler's table as a clock: its angles, its steps, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.pipelines import BETAS

from fewstep.core.angle import HALF_PI, rotate
from fewstep.core.grid import check_grid
from fewstep.errors import FolderError, GridError
from fewstep.models.clocks.betas import PREDICTIONS, UNDERSTOOD, BetaClock
from fewstep.models.scheduler import read_clock


def folder(path: Path, **config: Any) -> Path:
    (path / "scheduler").mkdir()
    text = json.dumps({"_class_name": "PNDMScheduler", **BETAS, **config})
    (path / "scheduler" / "scheduler_config.json").write_text(text)
    return path


def table(path: Path, **config: Any) -> BetaClock:
    return read_clock(folder(path, **config))


def test_stable_diffusions_angles(tmp_path: Path) -> None:
    t = table(tmp_path)
    assert t.phi_range == pytest.approx((0.0292, 1.5025), abs=5e-5)
    assert t.prediction == "epsilon"
    assert math.cos(t.phi_range[1]) ** 2 == pytest.approx(0.00466, abs=5e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_timesteps_are_exact_at_the_tables_angles(tmp_path: Path, dtype: torch.dtype) -> None:
    t = table(tmp_path)
    inside, timestep = t.place(t.phis.to(dtype))
    assert torch.equal(inside, t.phis.to(dtype))
    assert torch.equal(timestep, torch.arange(1000, dtype=dtype))


def test_between_they_are_interpolated_and_outside_they_are_at_the_ends(tmp_path: Path) -> None:
    t = table(tmp_path)
    half = 0.5 * (t.phis[1:] + t.phis[:-1])
    _, timestep = t.place(half)
    torch.testing.assert_close(timestep, torch.arange(999).double() + 0.5, rtol=0, atol=1e-9)
    ends = torch.tensor([0.0, HALF_PI], dtype=torch.float64)
    inside, timestep = t.place(ends)
    assert inside.tolist() == list(t.phi_range)
    assert timestep.tolist() == [0.0, 999.0]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_stock_steps_are_our_rotations(tmp_path: Path, prediction: str, steps: int) -> None:
    t = table(tmp_path, prediction_type=prediction)
    scheduler = t.scheduler()
    scheduler.set_timesteps(steps)
    grid = t.grid(steps)
    _, timesteps = t.place(torch.tensor(grid[:-1]))
    assert timesteps.tolist() == scheduler.timesteps.tolist()
    assert grid[-1] == 0.0
    draws = torch.Generator().manual_seed(steps)
    for timestep, phi, to in zip(scheduler.timesteps, grid, grid[1:], strict=False):
        z, out = torch.randn(2, 3, 4, 8, 8, generator=draws)
        v = t.velocity(out, z, torch.full((3,), phi))
        ours, theirs = rotate(z, v, phi - to), scheduler.step(out, timestep, z).prev_sample
        scale = float(theirs.abs().max())
        assert float((ours - theirs).abs().max()) <= 2e-6 * max(1.0, scale)


def test_a_grid_that_stock_schedulers_do_not_walk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GridError, match="does not divide"):
        table(tmp_path).grid(3)


@pytest.mark.parametrize("steps", [1, 2, 4, 250])
def test_split_steps_stand_on_the_finer_grid(tmp_path: Path, steps: int) -> None:
    t = table(tmp_path)
    grid = t.grid(steps)
    points = [p for a, b in zip(grid, grid[1:], strict=False) for p in t.split(a, b, 2)[:-1]]
    assert tuple(points) == t.grid(2 * steps)[:-1]


def test_steps_can_be_split_between_timesteps(tmp_path: Path) -> None:
    t = table(tmp_path)
    grid = t.grid(8)
    for a, b in zip(grid, grid[1:], strict=False):
        parts = check_grid(t.split(a, b, 3))
        assert (parts[0], parts[-1], len(parts)) == (a, b, 4)
    middle = t.split(grid[-2], 0.0, 2)[1]  # timestep 61.5
    assert middle == pytest.approx(0.5 * float(t.phis[61] + t.phis[62]), abs=1e-12)
    assert t.split(0.0, float(t.phis[0]), 2)[1] == pytest.approx(0.5 * float(t.phis[0]))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_velocity_undoes_what_the_network_predicts(tmp_path: Path, prediction: str) -> None:
    t = table(tmp_path, prediction_type=prediction)
    phi = t.phis[::37]
    draws = torch.Generator().manual_seed(0)
    z, v = torch.randn(2, len(phi), 4, generator=draws, dtype=torch.float64)
    back = t.velocity(t.predicted(v, z, phi), z, phi)
    torch.testing.assert_close(back, v, rtol=0, atol=1e-12)


def test_eps_is_converted_in_float32_where_states_are_coarser(tmp_path: Path) -> None:
    t = table(tmp_path)
    phi = torch.full((4,), t.phi_range[1])
    draws = torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, 4, 16, generator=draws).to(torch.bfloat16)
    v = t.velocity(eps, z, phi)
    exact = t.velocity(eps.double(), z.double(), phi.double())
    assert v.dtype == torch.bfloat16
    # Half a unit in the last of bfloat16's 8 bits: the answer's own rounding, and no other.
    torch.testing.assert_close(v.double(), exact, rtol=2**-8, atol=0)


def test_zero_terminal_snr_ends_at_exactly_noise(tmp_path: Path) -> None:
    t = table(tmp_path, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert t.phi_range[1] == HALF_PI
    assert t.grid(4)[0] == HALF_PI
    assert float(t.scheduler().alphas_cumprod[-1]) == 0.0


def test_eps_on_zero_terminal_snr_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"scheduler_config\.json: prediction_type 'epsilon'"):
        table(tmp_path, rescale_betas_zero_snr=True)


def test_eps_on_a_table_that_ends_in_almost_pure_noise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="ends in pure noise"):
        table(tmp_path, beta_schedule="squaredcos_cap_v2")


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"_class_name": "FlowMatchLCMScheduler"}, "'FlowMatchLCMScheduler' is not understood"),
        ({"_class_name": "LCMScheduler"}, "'LCMScheduler' is not understood"),
        ({"_class_name": "DDIMSchedular"}, "Did you mean 'DDIMScheduler'"),
        ({"prediction_type": "flow_prediction"}, "prediction_type: 'flow_prediction'"),
        ({"prediction_type": "v-prediction"}, "Did you mean 'v_prediction'"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule: 'sigmoid'"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas: True"),
        ({"timestep_type": "continuous"}, "timestep_type: 'continuous'"),
        ({"thresholding": True}, "thresholding: True"),
        ({"trained_betas": [0.1, 0.0, 0.1]}, "do not add noise"),
    ],
)
def test_what_is_not_understood_is_named(
    tmp_path: Path, config: dict[str, Any], match: str
) -> None:
    with pytest.raises(FolderError, match=match) as caught:
        table(tmp_path, **config)
    assert str(tmp_path / "scheduler" / "scheduler_config.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [None, '{"_class', "[]"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str | None) -> None:
    path = folder(tmp_path) / "scheduler" / "scheduler_config.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(FolderError, match=r"scheduler_config\.json"):
        read_clock(tmp_path)


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_every_scheduler_that_is_understood_gives_its_own_table(tmp_path: Path, name: str) -> None:
    import diffusers

    settings = {"prediction_type": "v_prediction"}
    (tmp_path / "scheduler").mkdir()
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": name, **settings}))
    theirs = getattr(diffusers, name)(**settings).alphas_cumprod.double()
    ours = torch.cos(read_clock(tmp_path).phis).square()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)
