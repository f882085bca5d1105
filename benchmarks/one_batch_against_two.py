"""Guidance as one batch of 2B, as `Guided` does it, against two batches of B."""

from __future__ import annotations

from collections.abc import Callable

import torch
from measure import Result, Setting, Table, Work, alternate
from networks import SUBJECTS, Subject
from torch import Tensor

from fewstep.core.denoiser import Guided, guide


def sides(setting: Setting, subject: Subject) -> dict[str, Work]:
    teacher, z, cond = subject.teacher, subject.x, subject.cond
    guided = Guided(teacher, subject.null_cond)
    phi, w = (torch.rand(len(z), device=setting.device) for _ in range(2))
    null = subject.null_cond.expand(cond.shape)

    def two() -> Tensor:
        return guide(teacher(z, phi, cond, w), teacher(z, phi, null, w), w)

    def quietly(call: Callable[[], Tensor]) -> Work:
        def work() -> None:
            with torch.no_grad():
                call()

        return work

    return {"one": quietly(lambda: guided(z, phi, cond, w)), "two": quietly(two)}


def run(setting: Setting) -> Result:
    rows = []
    for name, make in SUBJECTS.items():
        subject = make(setting)
        times = alternate(setting, sides(setting, subject), 20)
        rows.append(times.ratio(f"{name}, B = {subject.batch}", "one", "two"))
    return Result(__doc__, [Table("One batch of 2B / two batches of B", rows)])
