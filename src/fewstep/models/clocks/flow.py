"""The clock of rectified flow (flow matching): s in [0, 1], y = (1 - s) x + s eps, u = eps - x.

With z the variance-preserving state at the angle `phi = atan2(s, 1 - s)`, y is k z with
`k = sqrt((1 - s)^2 + s^2)`. An Euler step of the stock scheduler holds x and eps fixed, and so does
DDIM: it is our rotation (docs/mathematics.md section 1, decision 0027).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.angle import expand, flow_from_phi, flow_scale, phi_from_flow, v_from_flow
from fewstep.core.denoiser import Traits
from fewstep.core.grid import Grid, shifted_flow
from fewstep.errors import FolderError, MissingError
from fewstep.files.parts import is_number
from fewstep.models.clocks.betas import check_timesteps

# Schedulers whose networks are trained on rectified flow, and the name of their shift.
UNDERSTOOD = {
    "FlowMatchEulerDiscreteScheduler": "shift",
    "FlowMapEulerDiscreteScheduler": "shift",
    "FlowMatchHeunDiscreteScheduler": "shift",
    "DPMSolverMultistepScheduler": "flow_shift",
    "UniPCMultistepScheduler": "flow_shift",
}
# Settings under which steps are not those of a shifted flow, and the value under which they are.
ELSEWHERE = {
    "invert_sigmas": False,
    "stochastic_sampling": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "thresholding": False,
}
SHIFTS = ("exponential", "linear")
MU = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")


class FlowClock:
    """Rectified flow whose N steps are at s = a t / (1 + (a - 1) t), t = 1, 1 - 1/N, ..., 0.

    Grids of N and 2N steps are nested.

    Attributes:
        shift: a, above 0; 1 for equal steps of s.
        timesteps: T; the network is asked at the timestep T s.
        spaced: whether the stock pipeline gives the scheduler the sigmas 1, ..., 1/N itself.
    """

    prediction = "flow"

    def __init__(self, shift: float = 1.0, timesteps: int = 1000, *, spaced: bool = False) -> None:
        """Make a clock. Raises GridError where the shift is not above 0."""
        self.shift = shift
        self.timesteps = timesteps
        self.spaced = spaced
        self.grid(1)

    def __len__(self) -> int:
        """Return T."""
        return self.timesteps

    @property
    def name(self) -> str:
        """Name of the clock, for the card: number of timesteps and shift."""
        return f"flow-{self.timesteps}-{self.shift:.4f}"

    @property
    def phis(self) -> Tensor:
        """Angles of the timesteps 1, ..., T, (T,) float64 radians, rising."""
        s = torch.arange(1, self.timesteps + 1, dtype=torch.float64) / self.timesteps
        return phi_from_flow(s)

    def grid(self, steps: int) -> Grid:
        """Return the angles of N steps of the stock scheduler, from pi/2 to 0; N is any number."""
        return shifted_flow(steps, shift=self.shift)

    def split(self, phi: float, to: float, parts: int) -> Grid:
        """Return parts + 1 angles from phi to `to` at equal steps of t, the time before the shift.

        So a step of `grid(N)` is split where `grid(N * parts)` stands.
        """
        first, last = self._unshifted(phi), self._unshifted(to)
        inner = (first + (last - first) * k / parts for k in range(1, parts))
        return (phi, *(self._shifted(t) for t in inner), to)

    def _unshifted(self, phi: float) -> float:
        s = math.sin(phi) / (math.sin(phi) + math.cos(phi))
        return s / (self.shift - (self.shift - 1.0) * s)

    def _shifted(self, t: float) -> float:
        s = self.shift * t / (1.0 + (self.shift - 1.0) * t)
        return math.atan2(s, 1.0 - s)

    def traits(self, network: Any) -> Traits:
        """Return the clock's grids, over all angles."""
        return Traits(clock=self.grid, split=self.split)

    def place(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Return (phi, timestep), (B,) each, in the dtype of phi; timesteps lie in [0, T]."""
        return phi, self.timesteps * flow_from_phi(phi)

    def state(self, z: Tensor, phi: Tensor) -> Tensor:
        """Return y = k z (B, *D), what the network is given, in the dtype of z."""
        return expand(flow_scale(flow_from_phi(phi)), z) * z

    def velocity(self, out: Tensor, z: Tensor, phi: Tensor) -> Tensor:
        """Return v (B, *D) of the network's u = eps - x, in the dtype of z; float32 or better."""
        exact = torch.promote_types(z.dtype, torch.float32)
        y = self.state(z.to(exact), phi)
        return v_from_flow(y, out.to(exact), flow_from_phi(phi)).to(z.dtype)

    def scheduler(self) -> Any:
        """Return the stock scheduler whose N steps are those of `grid(N)`, for every N.

        Raises MissingError where diffusers is too old to have it.
        """
        import diffusers

        name = f"Flow{'Match' if self.spaced else 'Map'}EulerDiscreteScheduler"
        if not hasattr(diffusers, name):
            raise MissingError(f"{name} needs a newer diffusers: pip install -U diffusers")
        return getattr(diffusers, name)(num_train_timesteps=self.timesteps, shift=self.shift)


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's settings are of a network that was trained on rectified flow."""
    name = str(config.get("_class_name"))
    return name in UNDERSTOOD and (
        UNDERSTOOD[name] == "shift" or config.get("prediction_type") == "flow_prediction"
    )


def flow_clock(
    config: Mapping[str, Any], tokens: int | None, spaced: bool, path: Path
) -> FlowClock:
    """Return the clock of a stock scheduler's settings, defaults included.

    `shift_terminal`, where the stock scheduler starts the last of its steps, is left out: under it
    grids of N and 2N do not nest, and one step alone divides by zero (decision 0027).

    Args:
        config: settings for which `is_flow` holds.
        tokens: of an image, from which the stock pipeline computes mu; None where it computes none.
        spaced: as in `FlowClock`.
        path: named in errors.

    Raises FolderError: settings that are not understood.
    """
    dynamic = tokens is not None and config.get("use_dynamic_shifting") is True
    for key, right in {**ELSEWHERE, "use_dynamic_shifting": dynamic}.items():
        if config.get(key, right) != right:
            raise FolderError(
                f"{path}: {key}: {config[key]!r} is not understood; it must be {right!r} for the "
                "steps to be those of a shifted flow."
            )
    name = str(config["_class_name"])
    if UNDERSTOOD[name] == "flow_shift" and config.get("use_flow_sigmas") is not True:
        raise FolderError(
            f"{path}: use_flow_sigmas: {config.get('use_flow_sigmas')!r} is not understood; it "
            "must be true beside the prediction_type 'flow_prediction'."
        )
    total, shift = config["num_train_timesteps"], config[UNDERSTOOD[name]]
    check_timesteps(total, path)
    if tokens is not None and dynamic:
        shift = _dynamic_shift(config, tokens, path)
    if not (is_number(shift) and shift > 0):
        raise FolderError(
            f"{path}: {UNDERSTOOD[name]} must be a number above 0, got {str(shift)[:40]!r}. Write "
            "the one that the model was trained with."
        )
    return FlowClock(float(shift), total, spaced=spaced)


def _dynamic_shift(config: Mapping[str, Any], tokens: int, path: Path) -> float:
    """Return the shift at mu, which grows linearly with the number of tokens.

    Source: `calculate_shift` of diffusers' pipelines, and `time_shift` of their scheduler.
    """
    given = [config.get(key) for key in MU]
    if not all(map(is_number, given)) or given[0] == given[1]:
        raise FolderError(
            f"{path}: {', '.join(MU)} must be numbers, the first two of them different, got "
            f"{str(given)[:80]}. Write those that the model was trained with."
        )
    least, most, low, high = (float(x) for x in given if x is not None)
    kind = config.get("time_shift_type")
    if kind not in SHIFTS:
        raise FolderError(
            f"{path}: time_shift_type: {str(kind)[:40]!r} is not understood; it must be one of "
            f"{', '.join(SHIFTS)}."
        )
    mu = low + (high - low) * (tokens - least) / (most - least)
    if kind == "linear":
        return mu
    return math.exp(mu) if mu < 100 else math.inf
