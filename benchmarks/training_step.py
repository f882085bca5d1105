"""An update of `fewstep.train` against the sum of its parts, called bare on the same tensors."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from measure import Load, Result, Row, Setting, Table, Times, Work, beside_training
from networks import SUBJECTS, Subject, write_images
from torch import Tensor

from fewstep.core.denoiser import Guided
from fewstep.core.seed import generator
from fewstep.data import DataConfig, Dataset, augment, examples, open_dataset
from fewstep.distill.guidance import GuidanceDistillation
from fewstep.distill.problem import Problem
from fewstep.distill.steps import StepDistillation
from fewstep.models.clocks.native import timestep_from_phi
from fewstep.models.w_input import w_features
from fewstep.train import TrainConfig

W = (-0.5, 4.5)
ROUNDS = {"digits": 100, "cifar10-small": 16, "latent": 12}
LOADED = ("digits", "cifar10-small")


def bare_update(subject: Subject, forwards: Work) -> Work:
    """Return the bare update of a fresh student after the forwards of its teacher."""
    problem = GuidanceDistillation(Guided(subject.teacher, subject.null_cond), w_range=W)
    r = problem(subject.x, subject.cond, generator(subject.x.device, 0))
    student = subject.fresh()
    parameters = list(student.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    average = [p.detach().clone() for p in parameters]
    t, features = (
        timestep_from_phi(r.phi),
        w_features(r.w, student.network.config.time_cond_proj_dim),
    )

    def update() -> None:
        forwards()
        v = subject.call(student, r.z, t, subject.cond, features)
        torch.nn.functional.mse_loss(v.float(), r.v_target).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 0.01)

    return update


def stage_one(setting: Setting, subject: Subject) -> tuple[GuidanceDistillation, Work]:
    """Return the problem, and bare forwards of the guided pair: one batch of twice the size."""
    z = torch.randn(2 * subject.batch, *subject.x.shape[1:], device=setting.device)
    t = torch.full((len(z),), 500.0, device=setting.device)
    null = subject.null_cond.expand(subject.cond.shape)
    cond = torch.cat([subject.cond, null])

    def forwards() -> None:
        with torch.no_grad():
            subject.call(subject.teacher, z, t, cond)

    return GuidanceDistillation(Guided(subject.teacher, subject.null_cond), w_range=W), forwards


def stage_two(setting: Setting, subject: Subject) -> tuple[StepDistillation, Work]:
    """Return the problem, and bare forwards of its teacher: one for each of two half-steps."""
    teacher = subject.student
    z = torch.randn_like(subject.x)
    t = torch.full((len(z),), 500.0, device=setting.device)
    features = w_features(torch.ones_like(t), teacher.network.config.time_cond_proj_dim)

    def forwards() -> None:
        with torch.no_grad():
            for _ in range(2):
                subject.call(teacher, z, t, subject.cond, features)

    return StepDistillation(teacher, steps=4, w_range=W), forwards


Stage = Callable[[Setting, Subject], "tuple[Problem, Work]"]
STAGES: dict[str, Stage] = {"stage one": stage_one, "stage two": stage_two}


def config(setting: Setting, subject: Subject, updates: int) -> TrainConfig:
    """Return the training of so many updates, without a checkpoint between."""
    precision: Literal["fp32", "bf16"] = "bf16" if setting.precision == "bf16" else "fp32"
    return TrainConfig(
        updates=updates, batch_size=subject.batch, precision=precision, checkpoint_every=10**6
    )


def against_parts(
    setting: Setting, subject: Subject, stage: str, load: Load, folder: Path
) -> Times:
    problem, forwards = STAGES[stage](setting, subject)
    update = bare_update(subject, forwards)

    def parts() -> None:
        with setting.autocast():
            update()

    told = config(setting, subject, ROUNDS[subject.name] + 3)
    return beside_training(setting, subject.fresh(), problem, load, told, folder, {"parts": parts})


def kept(subject: Subject) -> Load:
    """Return what answers with the same batch, on the device already."""
    return lambda _: (subject.x, subject.cond)


def loader(setting: Setting, subject: Subject, folder: Path) -> Load:
    """Return the loader of the subject's recipe: the digits, or a memory map of images, flipped."""
    data: Dataset
    flip = subject.name != "digits"
    if flip:
        path = setting.data or write_images(folder, 4000, 32)
        data = open_dataset(DataConfig(name=str(path), size=subject.x.shape[-1], flip=True))
    else:
        data = open_dataset("digits")

    def load(update: int) -> tuple[Tensor, Any]:
        index, epoch = examples(data, 0, update, subject.batch, part=0, parts=1)
        x, cond = data.batch(index)
        return augment(x, 0, epoch, index, flip=flip), cond

    return load


def run(setting: Setting) -> Result:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["FEWSTEP_CACHE"] = str(Path(temporary) / "cache")
        for name, make in SUBJECTS.items():
            subject = make(setting)
            loads: dict[str, tuple[Load, float]] = {"cached data": (kept(subject), 1.03)}
            if name in LOADED:
                loads["loader"] = (loader(setting, subject, Path(temporary)), 1.10)
            for stage in STAGES:
                for source, (load, most) in loads.items():
                    folder = Path(temporary) / f"{name} {stage} {source}"
                    times = against_parts(setting, subject, stage, load, folder)
                    what = f"{name}, {stage}, {source}"
                    rows.append(times.ratio(what, "fewstep", "parts", most))
                    a, b = sum(times.wall["fewstep"]), sum(times.wall["parts"])
                    rows[-1]["of the sums"] = a / b
    return Result(__doc__ + ABOUT, [Table("update / parts", rows)])


ABOUT = """

A: everything between two questions for a batch, the log included. B: the teacher's forwards as one
batch, the student's forward and backward, gradient clipping, fused AdamW, the average by
`_foreach_lerp_`. "processor" is the ratio of processor times, "of the sums" that of the totals, in
which the readings of the loss (one in 25) are seen. The latent subject has no loader of its own.
"""
