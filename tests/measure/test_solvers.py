"""The stock solvers on our clock: the right angles, the right answer, and no other model."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from fewstep.core.angle import HALF_PI
from fewstep.core.denoiser import Traits
from fewstep.core.sample import sample
from fewstep.errors import RangeError, ShapeError
from fewstep.measure.solvers import SOLVERS, solve, solver_scheduler
from fewstep.models.clocks.betas import BetaClock
from fewstep.testing import Mixture


class Shaped:
    """A mixture that knows its shape: what a model folder's denoiser says of itself."""

    passes = 1
    traits = Traits(shape=(2,), dtype=torch.float32)

    def __init__(self, steps: tuple[int, ...] | None = None) -> None:
        means = torch.tensor([[0.8, 0.3], [-0.6, 0.5], [0.1, -0.9]], dtype=torch.float64)
        self.inner = Mixture(means[None], 0.15)
        self.traits = Traits(shape=(2,), dtype=torch.float32, steps=steps)
        self.phis: list[float] = []

    def __call__(self, z: Tensor, phi: Tensor, cond: Tensor, w: Tensor) -> Tensor:
        self.phis.append(float(phi[0]))
        return self.inner(z.double(), phi.double(), torch.zeros_like(cond), w.double()).float()


COND = torch.zeros(64, dtype=torch.int64)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 4, 16])
def test_it_visits_the_angles_of_ddim(solver: str, steps: int) -> None:
    model = Shaped()
    solve(model, COND, solver=solver, steps=steps)
    expected = [HALF_PI * k / steps for k in range(steps, 0, -1)]
    assert model.phis == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_it_converges_to_what_heun_makes_of_the_same_noise(solver: str) -> None:
    model = Shaped()
    true = sample(model, COND, steps=1024, sampler="heun", seed=3)
    errors = []
    for steps in (8, 32, 128):
        x = solve(model, COND, solver=solver, steps=steps, seed=3)
        errors.append(float((x - true).square().mean().sqrt()))
    ddim = sample(model, COND, steps=32, seed=3)
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02
    assert errors[1] < float((ddim - true).square().mean().sqrt())


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_step_is_ddims_and_batches_do_not_matter(solver: str) -> None:
    model = Shaped()
    x = solve(model, COND, solver=solver, steps=1, seed=5)
    torch.testing.assert_close(x, sample(model, COND, steps=1, seed=5), rtol=0, atol=2e-3)
    parts = solve(model, COND, solver=solver, steps=4, seed=5, batch_size=10)
    torch.testing.assert_close(parts, solve(model, COND, solver=solver, steps=4, seed=5))


def test_the_clock_ends_in_noise() -> None:
    squares = solver_scheduler("unipc").alphas_cumprod
    assert float(squares[-1]) == pytest.approx(2.0**-24, rel=0.1)
    assert float(squares[511]) == pytest.approx(math.cos(HALF_PI / 2) ** 2, rel=1e-5)


def test_what_a_solver_cannot_do_is_refused() -> None:
    with pytest.raises(RangeError, match="'unipc'"):
        solve(Shaped(), COND, solver="unipcc", steps=4)
    with pytest.raises(RangeError, match="give a teacher"):
        solve(Shaped((4,)), COND, solver="unipc", steps=4)
    with pytest.raises(RangeError, match="steps = 0"):
        solve(Shaped(), COND, solver="unipc", steps=0)
    with pytest.raises(ShapeError, match="shape"):
        solve(lambda z, phi, cond, w: z, COND, solver="unipc", steps=4)  # type: ignore[arg-type]


class OnTable(Shaped):
    """The same on a table of betas, as a pipeline folder's model is."""

    def __init__(self, zero_snr: bool) -> None:
        super().__init__()
        self.clock = BetaClock(
            DDIMScheduler(
                beta_schedule="scaled_linear",
                prediction_type="v_prediction",
                rescale_betas_zero_snr=zero_snr,
                clip_sample=False,
            )
        )
        self.traits = Traits(shape=(2,), dtype=torch.float32, clock=self.clock.grid)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
def test_on_a_table_it_visits_the_angles_of_ddim_and_converges(solver: str, zero_snr: bool) -> None:
    model = OnTable(zero_snr)
    true = sample(model, COND, steps=1000, seed=3)
    errors = []
    for steps in (10, 20, 100):
        model.phis.clear()
        x = solve(model, COND, solver=solver, steps=steps, seed=3)
        assert model.phis == pytest.approx(list(model.clock.grid(steps)[:-1]), abs=1e-6)
        errors.append(float((x - true).square().mean().sqrt()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02
