"""What distillation is for: 256 guided steps of two passes each, against 4 single ones."""

from __future__ import annotations

import torch
from measure import Result, Setting, Table, alternate
from networks import SUBJECTS

import fewstep
from fewstep.core.denoiser import Guided


def run(setting: Setting) -> Result:
    subject, cond = SUBJECTS["digits"](setting), torch.arange(100, device=setting.device) % 10
    guided = Guided(subject.teacher, subject.null_cond)
    times = alternate(
        setting,
        {
            "teacher": lambda: fewstep.sample(guided, cond, w=1.0, steps=256),
            "student": lambda: fewstep.sample(subject.student, cond, w=1.0, steps=4),
        },
        3,
    )
    row = times.ratio("digits, 100 images: 256 guided steps / 4 steps", "teacher", "student")
    return Result(__doc__, [Table("Times as long", [row])])
