"""The clock of rectified flow: its angles, its steps in stock schedulers, and what is refused."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FlowMapEulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps

from fewstep.core.angle import HALF_PI, add_noise, rotate, v_from_x_eps
from fewstep.errors import FolderError, GridError, MissingError
from fewstep.models.clocks.flow import FlowClock, flow_clock
from fewstep.models.scheduler import read_clock

SHIFTS = [1.0, 3.0, math.exp(1.15), 0.5]


def settings(name: str = "FlowMatchEulerDiscreteScheduler", **more: Any) -> dict[str, Any]:
    return {**dict(getattr(diffusers, name)(**more).config), "_class_name": name}


def clock(
    tokens: int | None = None, name: str = "FlowMatchEulerDiscreteScheduler", **more: Any
) -> FlowClock:
    return flow_clock(settings(name, **more), tokens, spaced=True, path=Path("here.json"))


def draws(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return made[0], made[1]


@pytest.mark.parametrize("shift", SHIFTS)
def test_an_euler_step_is_our_rotation_in_float64(shift: float) -> None:
    """y' = y + (s' - s) u, with y = k z: for any z and u, and any two times."""
    flow = FlowClock(shift)
    grid = flow.grid(7)
    z, u = draws(5, 3, 4, 4)
    for phi, to in zip(grid, grid[1:], strict=False):
        s, s_to = (math.sin(p) / (math.sin(p) + math.cos(p)) for p in (phi, to))
        angle, angle_to = (torch.full((5,), p, dtype=torch.float64) for p in (phi, to))
        y = flow.state(z, angle)
        theirs = y + (s_to - s) * u
        ours = flow.state(rotate(z, flow.velocity(u, z, angle), phi - to), angle_to)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


def test_states_and_predictions_are_those_of_rectified_flow() -> None:
    flow = FlowClock(3.0)
    x, eps = draws(6, 4)
    phi = torch.tensor([0.0, 1e-4, 0.5, 1.0, 1.57, HALF_PI], dtype=torch.float64)
    inside, timestep = flow.place(phi)
    s = timestep[:, None] / 1000
    z = add_noise(x, eps, phi)
    assert torch.equal(inside, phi)
    torch.testing.assert_close(flow.state(z, phi), (1 - s) * x + s * eps, rtol=0, atol=1e-12)
    v = flow.velocity(eps - x, z, phi)
    torch.testing.assert_close(v, v_from_x_eps(x, eps, phi), rtol=0, atol=1e-12)


@pytest.mark.parametrize("spaced", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 20, 50])
@pytest.mark.parametrize("shift", SHIFTS)
def test_the_saved_scheduler_makes_n_useful_steps(shift: float, steps: int, spaced: bool) -> None:
    """As pipelines call it: those of Flux's kind give sigmas, those of SD3's kind do not."""
    flow = FlowClock(shift, spaced=spaced)
    scheduler, more = flow.scheduler(), {}
    if spaced:
        more = {"sigmas": np.linspace(1.0, 1 / steps, steps), "mu": 0.7}
    timesteps, count = retrieve_timesteps(scheduler, None if spaced else steps, "cpu", **more)
    grid = torch.tensor(flow.grid(steps), dtype=torch.float64)
    _, asked = flow.place(grid)
    assert count == len(timesteps) == steps
    torch.testing.assert_close(timesteps.double(), asked[:-1], rtol=2e-7, atol=0)
    torch.testing.assert_close(scheduler.sigmas.double() * 1000, asked, rtol=2e-7, atol=0)
    z, u = (d.float() for d in draws(3, 4, 4))
    for timestep, phi, to in zip(timesteps, grid, grid[1:], strict=False):
        angle, angle_to = phi.expand(3), to.expand(3)
        y = flow.state(z, angle)
        theirs = scheduler.step(u, timestep, y, return_dict=False)[0]
        after = rotate(z, flow.velocity(u, z, angle), float(phi - to))
        torch.testing.assert_close(flow.state(after, angle_to), theirs, rtol=0, atol=2e-6)


def test_stable_diffusion_3s_own_scheduler_spends_its_last_step_on_nothing() -> None:
    """Why another one is saved: of N steps the last one starts at s = 0.009."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    assert float(scheduler.sigmas[-2]) == pytest.approx(0.00893, abs=1e-4)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", [1, 2, 5, 64])
def test_split_steps_stand_on_the_finer_grid(steps: int, shift: float) -> None:
    flow = FlowClock(shift)
    grid = flow.grid(steps)
    for parts in (2, 3):
        points = [p for a, b in zip(grid, grid[1:], strict=False) for p in flow.split(a, b, parts)]
        finer = flow.grid(steps * parts)
        assert points[:: parts + 1] == list(grid[:-1])
        kept = [p for k, p in enumerate(points) if k % (parts + 1) != parts]
        assert kept == pytest.approx(list(finer[:-1]), abs=1e-12)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_the_shift_of_a_resolution_is_that_of_the_pipelines(tokens: int, kind: str) -> None:
    config = {"time_shift_type": kind, "base_shift": 0.4, "max_shift": 1.3}
    stock = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **config)
    mu = calculate_shift(tokens, 256, 4096, 0.4, 1.3)
    stock.set_timesteps(sigmas=np.linspace(1.0, 1 / 8, 8), mu=mu)
    flow = clock(tokens, use_dynamic_shifting=True, **config)
    _, timesteps = flow.place(torch.tensor(flow.grid(8), dtype=torch.float64))
    torch.testing.assert_close(stock.sigmas.double() * 1000, timesteps, rtol=1e-6, atol=0)
    assert not flow.scheduler().config.use_dynamic_shifting


@pytest.mark.parametrize(
    ("name", "config", "shift"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 3.0),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "shift_terminal": 0.02}, 3.0),
        ("FlowMatchHeunDiscreteScheduler", {"shift": 2.0}, 2.0),
        ("FlowMapEulerDiscreteScheduler", {"shift": 5.0}, 5.0),
        (
            "DPMSolverMultistepScheduler",
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 4.0},
            4.0,
        ),
    ],
)
def test_the_shift_is_the_schedulers(name: str, config: dict[str, Any], shift: float) -> None:
    flow = clock(None, name, **config)
    assert (flow.shift, flow.prediction, len(flow)) == (shift, "flow", 1000)
    assert flow.name == f"flow-1000-{shift:.4f}"
    assert flow.phis[-1] == HALF_PI
    assert bool((flow.phis.diff() > 0).all())


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"stochastic_sampling": True}, "stochastic_sampling: True"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas: True"),
        ({"use_exponential_sigmas": True}, "use_exponential_sigmas: True"),
        ({"use_beta_sigmas": True}, "use_beta_sigmas: True"),
        ({"invert_sigmas": True}, "invert_sigmas: True"),
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting: True is not understood; it must"),
        ({"shift": 0.0}, "shift must be a number above 0, got '0.0'"),
        ({"shift": "3"}, "shift must be a number above 0"),
        ({"num_train_timesteps": 1}, "num_train_timesteps must be a whole number from 2"),
    ],
)
def test_what_is_not_understood_is_named(config: dict[str, Any], match: str) -> None:
    with pytest.raises(FolderError, match=match) as caught:
        flow_clock({**settings(), **config}, None, spaced=False, path=Path("here.json"))
    assert str(caught.value).startswith("here.json")


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"time_shift_type": "cubic"}, "time_shift_type: 'cubic'"),
        ({"max_shift": None}, "max_shift must be numbers"),
        ({"max_image_seq_len": 256}, "the first two of them different"),
        ({"base_shift": 1e9, "max_shift": 1e9}, "shift must be a number above 0, got 'inf'"),
    ],
)
def test_a_shift_that_cannot_be_computed_is_named(config: dict[str, Any], match: str) -> None:
    config_of_scheduler = {**settings(), "use_dynamic_shifting": True, **config}
    with pytest.raises(FolderError, match=match):
        flow_clock(config_of_scheduler, 1024, spaced=True, path=Path("here.json"))


def test_no_shift_at_all_is_no_clock() -> None:
    with pytest.raises(GridError, match="shift = 0"):
        FlowClock(0.0)


def test_a_flow_scheduler_in_another_pipelines_folder_is_refused(tmp_path: Path) -> None:
    FlowMapEulerDiscreteScheduler().save_pretrained(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "PixArtSigmaPipeline"}))
    with pytest.raises(FolderError, match="whose networks are trained on betas"):
        read_clock(tmp_path)


def test_a_diffusers_that_is_too_old_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FlowMapEulerDiscreteScheduler().save_pretrained(tmp_path / "scheduler")
    monkeypatch.setitem(sys.modules, "diffusers", SimpleNamespace())
    with pytest.raises(MissingError, match="FlowMapEulerDiscreteScheduler needs a newer diffusers"):
        FlowClock(3.0).scheduler()
    with pytest.raises(MissingError, match="FlowMapEulerDiscreteScheduler needs a newer diffusers"):
        read_clock(tmp_path)
