"""A real distillation, both stages, of an exact guided teacher."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.sample import sample
from fewstep.distill.halve import Halve
from fewstep.distill.match import Match
from fewstep.metrics import paired_rms
from fewstep.testing import Mixture
from tests.distill.toy import CLASSES, Net, fit

W = (0.0, 4.0)
COND = torch.arange(1500) % CLASSES


def data() -> Mixture:
    g = torch.Generator().manual_seed(3)
    return Mixture(1.2 * torch.randn(CLASSES, 2, 2, generator=g), 0.15)


def distil(teacher: Denoiser, mixture: Mixture, seed: int) -> dict[int, Net]:
    student = fit(Net(), Match(teacher, w=W), mixture, 1500, seed, lr=3e-3)
    out = {}
    for steps, substeps in ((8, 4), (4, 2)):
        stage = Halve(student, steps, substeps=substeps, w=W)
        student = out[steps] = fit(student, stage, mixture, 500, seed + steps, lr=2e-3)
    return out


def draw(denoiser: Denoiser, w: float, steps: int) -> Tensor:
    return sample(denoiser, COND, w=w, steps=steps, seed=11, shape=(2,))


@pytest.mark.parametrize("seed", [0])
def test_a_four_step_student_beats_its_teachers_own_four_steps(seed: int) -> None:
    mixture = data()
    teacher = mixture.guided()
    student = distil(teacher, mixture, seed)[4]
    ratios = {}
    for w in (0.0, 1.0, 2.0):
        reference = draw(teacher, w, 256)
        own, ours = (paired_rms(draw(d, w, 4), reference) for d in (teacher, student))
        ratios[w] = ours / own
    assert max(ratios.values()) < BOUND, ratios


BOUND = 0.6
