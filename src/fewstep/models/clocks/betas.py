"""The clock of a stock discrete scheduler: a table of angles, one a timestep (math.md section 1).

A network trained on betas answers at the angles `phi_k` of its own table, and between them at
fractional timesteps. Angles are taken from the float32 table that a stock `DDIMScheduler` steps
on, so that its steps are our rotations (decision 0014).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.core.angle import (
    eps_from_v,
    phi_from_alphas_cumprod,
    v_from_eps,
    v_from_x,
    x_from_v,
)
from fewstep.core.denoiser import Traits
from fewstep.core.grid import Grid, discrete
from fewstep.errors import FolderError, did_you_mean
from fewstep.files.parts import is_count, is_number, reading

if TYPE_CHECKING:
    from diffusers import DDIMScheduler

PREDICTIONS = ("epsilon", "v_prediction", "sample")
MAX_TIMESTEPS = 100_000
SMALLEST_ALPHA = 1e-3  # below it, x from eps is rounding noise times 1,000
# Schedulers whose networks are trained at the timesteps of a table of betas.
UNDERSTOOD = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
# Settings under which the network's clock is not the table of betas, and the value that is.
ELSEWHERE = {"use_flow_sigmas": False, "timestep_type": "discrete", "thresholding": False}


class BetaClock:
    """A table of T angles, rising from nearly clean to noise, and what a network predicts at them.

    Attributes:
        phis: (T,) float64 radians.
        prediction: "epsilon", "v_prediction" or "sample" (x).
    """

    def __init__(self, scheduler: DDIMScheduler, source: str = "the scheduler") -> None:
        """Read the table of a stock scheduler; `source` is named in errors.

        Raises FolderError: a prediction that is not understood, an eps-network on a table that
        ends in pure noise, or a table that does not rise.
        """
        self.config: dict[str, Any] = dict(scheduler.config)
        self.prediction = str(self.config["prediction_type"])[:40]
        if self.prediction not in PREDICTIONS:
            raise FolderError(
                f"{source}: prediction_type: {self.prediction!r} is not understood; it must be one "
                f"of {', '.join(PREDICTIONS)}.{did_you_mean(self.prediction, PREDICTIONS)}"
            )
        self.phis = phi_from_alphas_cumprod(scheduler.alphas_cumprod)
        alpha = math.cos(float(self.phis[-1]))
        if self.prediction == "epsilon" and alpha < SMALLEST_ALPHA:
            raise FolderError(
                f"{source}: prediction_type 'epsilon' on a table that ends in pure noise (signal "
                f"{alpha:.1e} at the last timestep; rescale_betas_zero_snr is "
                f"{self.config.get('rescale_betas_zero_snr')}): eps says nothing about the image "
                "there. Use a v_prediction model, or the betas that the model was trained with."
            )
        if len(self.phis) < 2 or not bool((self.phis.float().diff() > 0).all()):
            raise FolderError(f"{source}: the betas do not add noise at every timestep.")
        self._points: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __len__(self) -> int:
        """Return T."""
        return len(self.phis)

    @classmethod
    def from_betas(cls, betas: Sequence[float] | Tensor, prediction: str = "epsilon") -> BetaClock:
        """Return the clock of a network of your own, from the betas that it was trained with.

        Args:
            betas: (T,), T >= 2, each in (0, 1): the noise that a timestep adds, as a variance.
            prediction: what the network predicts: "epsilon", "v_prediction" or "sample" (x).

        Raises:
            FolderError: betas or a prediction that are not understood, as for a folder's scheduler.
        """
        given = betas.tolist() if isinstance(betas, Tensor) else list(betas)
        config = {
            "num_train_timesteps": len(given),
            "beta_start": 0.0001,
            "beta_end": 0.02,
            "beta_schedule": "linear",
            "trained_betas": given,
            "prediction_type": prediction,
        }
        _check_numbers(config, "betas")
        return cls(_ddim(config), "betas")

    @property
    def name(self) -> str:
        """Name of the clock, for the card: number of timesteps, first and last angle."""
        first, last = self.phi_range
        return f"table-{len(self)}-{first:.4f}-{last:.4f}"

    @property
    def phi_range(self) -> tuple[float, float]:
        """The first and the last angle."""
        return float(self.phis[0]), float(self.phis[-1])

    def traits(self, network: Any) -> Traits:
        """Return the grids of the table, and its range of angles."""
        return Traits(clock=self.grid, split=self.split, phi_range=self.phi_range)

    def grid(self, steps: int) -> Grid:
        """Return the grid of N "trailing" DDIM steps that end at clean; N must divide T."""
        return discrete(self.phis, steps)

    def split(self, phi: float, to: float, parts: int) -> Grid:
        """Return parts + 1 angles from phi to `to` at equal steps of the timestep.

        So a step of `grid(N)` is split where `grid(N * parts)` stands; clean counts as timestep
        -1, and between timesteps the angle is interpolated.
        """
        first, last = self._index(phi), self._index(to)
        return (
            phi,
            *(self._angle(first + (last - first) * k / parts) for k in range(1, parts)),
            to,
        )

    def _angle(self, index: float) -> float:
        below = math.floor(index)
        low = float(self.phis[below]) if below >= 0 else 0.0
        part = index - below
        return low if part == 0.0 else low + part * (float(self.phis[below + 1]) - low)

    def _index(self, phi: float) -> float:
        ladder: list[float] = [0.0, *self.phis.tolist()]
        above = next((k for k, at in enumerate(ladder) if at >= phi), len(ladder) - 1)
        if ladder[above] == phi or above == 0 or phi > ladder[-1]:
            return above - 1.0
        low, high = ladder[above - 1], ladder[above]
        return above - 2.0 + (phi - low) / (high - low)

    def place(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Return (phi, timestep), (B,) each, in the dtype of phi: where the network is asked.

        Exact at the table's angles, linear between them; an angle outside the table is taken to
        its nearest end, where a stock scheduler asks as well.
        """
        key = (phi.device, phi.dtype)
        if key not in self._points:
            self._points[key] = self.phis.to(device=phi.device, dtype=phi.dtype)
        points = self._points[key]
        inside = torch.clamp(phi, points[0], points[-1])
        below = (torch.searchsorted(points, inside, right=True) - 1).clamp(0, len(points) - 2)
        low, high = points[below], points[below + 1]
        return inside, below + (inside - low) / (high - low)

    def state(self, z: Tensor, phi: Tensor) -> Tensor:
        """Return z."""
        return z

    def velocity(self, out: Tensor, z: Tensor, phi: Tensor) -> Tensor:
        """Return v (B, *D) of what the network predicts, in the dtype of z; float32 or better."""
        if self.prediction == "v_prediction":
            return out.to(z.dtype)
        exact = torch.promote_types(z.dtype, torch.float32)
        convert = v_from_eps if self.prediction == "epsilon" else v_from_x
        return convert(z.to(exact), out.to(exact), phi).to(z.dtype)

    def predicted(self, v: Tensor, z: Tensor, phi: Tensor) -> Tensor:
        """Return what a network of this table says where the velocity is v: `velocity` undone."""
        if self.prediction == "v_prediction":
            return v
        return (eps_from_v if self.prediction == "epsilon" else x_from_v)(z, v, phi)

    def scheduler(self) -> DDIMScheduler:
        """Return the stock scheduler whose N steps are those of `grid(N)`, for N dividing T."""
        return _ddim(self.config)


def _ddim(config: dict[str, Any]) -> DDIMScheduler:
    from diffusers import DDIMScheduler

    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    scheduler: DDIMScheduler = DDIMScheduler(
        **{name: config[name] for name in names},
        prediction_type=config["prediction_type"],
        rescale_betas_zero_snr=config.get("rescale_betas_zero_snr", False),
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
        steps_offset=1,  # unused by trailing steps; stock pipelines call anything else outdated
    )
    return scheduler


def beta_clock(config: dict[str, Any], path: Path) -> BetaClock:
    """Return the clock of a stock scheduler's settings, defaults included; `path` for errors.

    Raises FolderError: a scheduler, a table of betas or a prediction that is not understood.
    """
    for key, right in ELSEWHERE.items():
        if config.get(key, right) != right:
            raise FolderError(
                f"{path}: {key}: {config[key]!r} is not understood; it must be {right!r} for the "
                "network's clock to be its table of betas."
            )
    if config["trained_betas"] is None and config["beta_schedule"] not in BETAS:
        raise FolderError(
            f"{path}: beta_schedule: {config['beta_schedule']!r} is not understood; it must be one "
            f"of {', '.join(BETAS)}.{did_you_mean(str(config['beta_schedule']), BETAS)}"
        )
    _check_numbers(config, str(path))
    with reading(path):
        clock = BetaClock(_ddim(config), str(path))
    _check_length(config, len(clock), str(path))
    return clock


def _check_length(config: dict[str, Any], length: int, source: str) -> None:
    if config["num_train_timesteps"] != length:
        raise FolderError(
            f"{source}: trained_betas must hold one number for each of the "
            f"{config['num_train_timesteps']} timesteps, got {length}. Write those that the model "
            "was trained with."
        )


def check_timesteps(total: Any, source: object) -> None:
    """Raise FolderError, naming `source`, unless a scheduler's number of timesteps is one."""
    if not (is_count(total, MAX_TIMESTEPS) and total >= 2):
        raise FolderError(
            f"{source}: num_train_timesteps must be a whole number from 2 to {MAX_TIMESTEPS}, got "
            f"{str(total)[:40]!r}. Write the one that the model was trained with."
        )


def _check_numbers(config: dict[str, Any], source: str) -> None:
    """Raise FolderError unless the numbers that the betas are made of are numbers in range."""
    total, betas = config["num_train_timesteps"], config["trained_betas"]
    check_timesteps(total, source)
    if betas is not None:
        right = isinstance(betas, list | tuple) and len(betas) <= MAX_TIMESTEPS
        if not right or not all(is_number(b) and 0 <= b <= 1 for b in betas):
            raise FolderError(
                f"{source}: trained_betas must be null or one number from 0 to 1 for each of the "
                f"{total} timesteps, got {str(betas)[:60]}. Write those that the model was trained "
                "with."
            )
        return
    for key in ("beta_start", "beta_end"):
        if not (is_number(config[key]) and 0 < config[key] < 1):
            raise FolderError(
                f"{source}: {key} must be a number between 0 and 1, got {str(config[key])[:40]!r}. "
                "Write the one that the model was trained with."
            )
