"""`fewstep.sample` against as many bare forwards, and against the loop of a diffusers pipeline."""

from __future__ import annotations

import torch
from measure import Result, Row, Setting, Table, alternate
from networks import SUBJECTS, Subject

import fewstep
from fewstep.core.grid import cosine
from fewstep.models.clocks.native import native_scheduler, timestep_from_phi
from fewstep.models.pipeline import ClassConditionalPipeline
from fewstep.models.w_input import w_features

STEPS = 4
ROUNDS = {1: 80, 8: 30, 64: 16, 256: 5}
MOST = {1: 1.15, 64: 1.03}


def against_bare(setting: Setting, subject: Subject, batch: int) -> tuple[Row, Row]:
    """Return the rows of one batch size: against bare forwards, against the pipeline."""
    student = subject.student
    cond = torch.arange(batch, device=setting.device) % 10
    z = torch.randn(batch, *subject.x.shape[1:], device=setting.device, dtype=setting.dtype)
    features = w_features(torch.ones(batch, device=setting.device), 128).to(z.dtype)
    t = [timestep_from_phi(torch.full((batch,), phi)) for phi in cosine(STEPS)[:-1]]
    t = [x.to(setting.device) for x in t]
    pipeline = ClassConditionalPipeline(student.network, native_scheduler())
    pipeline.set_progress_bar_config(disable=True)

    def forwards() -> None:
        with torch.no_grad():
            for x in t:
                subject.call(student, z, x, cond, features)

    times = alternate(
        setting,
        {
            "fewstep": lambda: fewstep.sample(student, cond, w=1.0, steps=STEPS),
            "forwards": forwards,
            "pipeline": lambda: pipeline(cond, STEPS, guidance_scale=2.0, output_type="pt"),
        },
        ROUNDS[batch],
        warm=2,
    )
    bare = times.ratio(f"batch {batch}", "fewstep", "forwards", MOST.get(batch))
    return bare, times.ratio(f"batch {batch}", "fewstep", "pipeline")


def run(setting: Setting) -> Result:
    subject = SUBJECTS["cifar10-small"](setting)
    if setting.dtype != torch.float32:
        subject.student.network.to(setting.dtype)
    found = [against_bare(setting, subject, batch) for batch in ROUNDS]
    return Result(
        __doc__ + ABOUT,
        [
            Table(f"fewstep.sample / {STEPS} bare forwards", [bare for bare, _ in found]),
            Table("fewstep.sample / diffusers' pipeline loop", [loop for _, loop in found]),
        ],
    )


ABOUT = f"""

A student of {STEPS} steps at CIFAR size (16x16). A draws each image's own noise, checks what it was
given, feeds w and turns the state; B is the stock network called {STEPS} times on tensors that are
there already, or `ClassConditionalPipeline` with tensors as its output and no progress bar.
"""
