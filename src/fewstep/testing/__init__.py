"""Public checks for anyone's denoiser, sampler or stage, and exact teachers to check against."""

from __future__ import annotations

from fewstep.testing.denoiser import check_denoiser
from fewstep.testing.exact import Gaussian, GaussianJump, Mixture
from fewstep.testing.report import CheckFailed
from fewstep.testing.sampler import Counting, check_sampler
from fewstep.testing.stage import check_stage

__all__ = [
    "CheckFailed",
    "Counting",
    "Gaussian",
    "GaussianJump",
    "Mixture",
    "check_denoiser",
    "check_sampler",
    "check_stage",
]
