"""A real distillation, both stages, of an exact guided teacher."""

from __future__ import annotations

import torch
from tests.distill.toy import CLASSES, Net, fit
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.sample import sample
from fewstep.distill.guidance import GuidanceDistillation
from fewstep.distill.steps import StepDistillation
from fewstep.metrics import paired_rms
from fewstep.testing import Mixture

W = (0.0, 4.0)
COND = torch.arange(1500) % CLASSES


def data() -> Mixture:
    g = torch.Generator().manual_seed(3)
    return Mixture(1.2 * torch.randn(CLASSES, 2, 2, generator=g), 0.15)


def distil(teacher: Denoiser, mixture: Mixture, seed: int) -> dict[int, Net]:
    student = fit(Net(), GuidanceDistillation(teacher, w_range=W), mixture, 1500, seed, lr=3e-3)
    out = {}
    for steps, substeps in ((8, 4), (4, 2)):
        stage = StepDistillation(student, steps, substeps=substeps, w_range=W)
        student = out[steps] = fit(student, stage, mixture, 500, seed + steps, lr=2e-3)
    return out


def draw(denoiser: Denoiser, w: float, steps: int) -> Tensor:
    return sample(denoiser, COND, w=w, steps=steps, seed=11, shape=(2,))


def test_a_four_step_student_beats_its_teachers_own_four_steps() -> None:
    """Paired distance to 256 steps, as a part of that of the teacher's own four steps.

    Over seeds 0 to 4: 0.40 to 0.49 at w = 1, 0.25 to 0.33 at w = 2. At w = 0 this network loses
    (1.7 to 1.9): the teacher's four steps are off by 0.13 only, less than the network's own error.
    """
    mixture = data()
    teacher = mixture.guided()
    student = distil(teacher, mixture, seed=0)[4]
    for w, bound in ((1.0, 0.65), (2.0, 0.5)):
        reference = draw(teacher, w, 256)
        own, ours = (paired_rms(draw(d, w, 4), reference) for d in (teacher, student))
        assert ours < bound * own, (w, ours, own)
