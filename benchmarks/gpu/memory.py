"""Step `memory`: what `fewstep.train.estimate` foresees against the peak on the device."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.gpu.common import (
    Context,
    Record,
    Row,
    examples,
    fresh_folder,
    pretraining,
    teacher_of,
)

from fewstep.core.denoiser import Guided
from fewstep.models import Model, student_of
from fewstep.train import TrainConfig, Watch, estimate, train


def run_memory(context: Context) -> None:
    """Measure the teacher's training and a student's, with and without checkpointing."""
    record = Record("memory", context)
    sizes = (64, 256, 1024) if not context.tiny else (4,)
    for size in sizes:
        for saving in (False, True):
            what = f"batch {size}" + (", activations checkpointed" if saving else "")
            for stage in ("teacher", "student-4"):
                record.part(
                    f"{stage}, {what}",
                    partial(against_estimate, context, stage, size, saving),
                    need=4,
                )


def subject(context: Context, stage: str) -> tuple[Model, Any]:
    """Return the network that is trained, and its problem."""
    recipe, teacher = context.recipe(), teacher_of(context)
    if stage == "teacher":
        return teacher, pretraining(teacher)
    found = next(s for s in recipe.distill.plan() if s.name == stage)
    student = student_of(teacher, found, recipe.distill.w, w_dim=recipe.network.w_dim)
    return student, found.problem(Guided(teacher, teacher.null_cond), recipe.distill.w)


def against_estimate(context: Context, stage: str, size: int, saving: bool) -> Row:
    """Return the bytes that are foreseen, those of the peak, and their ratio."""
    context.free()
    student, problem = subject(context, stage)
    x, cond = examples(context, size)
    config = TrainConfig(
        updates=3, batch_size=size, precision=context.precision, checkpoint_every=10**6,
        checkpoint_activations=saving,
    )  # fmt: skip
    foreseen = estimate(student, problem, config, x[:1], cond[:1])
    device = next(student.parameters()).device
    watch = Watch(device, foreseen.weights)
    folder = fresh_folder(context.work / "memory")
    train(
        student, problem, lambda *_: (x, cond), config, folder,
        device=context.device, progress=False,
    )  # fmt: skip
    peak = watch.peak()
    return {
        "foreseen": foreseen.total,
        "activations foreseen": foreseen.activations,
        "peak": peak,
        "foreseen / peak": foreseen.total / peak if peak else None,
    }
