"""Step `sampling`: `fewstep.sample` against bare forwards, compiled and as a CUDA graph."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial

import torch
from benchmarks.gpu.common import Context, Record, Row, Work, counted, median_ms, teacher_of
from torch import Tensor

import fewstep
from fewstep.core.denoiser import Guided
from fewstep.core.grid import cosine
from fewstep.models import Model, student_of
from fewstep.models.clocks.native import timestep_from_phi
from fewstep.models.w_input import w_features

STEPS, W = 4, 1.0
LONG = 1024
MODES = {"reduce-overhead": "compiled, CUDA graphs", "default": "compiled"}


def run_sampling(context: Context) -> None:
    """Measure batch 1 and 64: first what runs at once, then what has to be compiled."""
    record = Record("sampling", context)
    teacher, student = models(context)
    batches = (1, context.short(64, 2))
    works = {batch: bare_forwards(context, student, batch) for batch in batches}
    flops = {batch: counted(work) for batch, work in works.items()}

    def timed(batch: int, work: Work) -> Row:
        row = median_ms(context, work, context.short(60 if batch == 1 else 30, 2), warm=3)
        rate = flops[batch] / row["ms"] / 1e9
        return {**row, "ms per image": row["ms"] / batch, "TFLOP/s": rate}

    def drawn(batch: int, model: Model) -> Work:
        cond = classes(context, batch)
        return lambda: fewstep.sample(model, cond, w=W, steps=STEPS)

    def drawn_compiled(batch: int, mode: str) -> Work:
        return drawn(batch, compiled(context, student, mode))

    def given(work: Work) -> Work:
        return work

    def part(batch: int, name: str, work: Callable[[], Work], need: float) -> None:
        record.part(f"batch {batch}: {name}", lambda: timed(batch, work()), need=need)

    for batch, forwards in works.items():
        part(batch, "bare forwards", partial(given, forwards), 3)
        part(batch, "sample", partial(drawn, batch, student), 3)
        part(batch, "bare forwards, CUDA graph", partial(graphed, context, forwards), 4)
    for batch in reversed(batches):
        name = f"batch {batch}: teacher, {LONG} guided steps"
        record.part(name, partial(long, context, teacher, batch), need=20)
    for batch, mode in ((b, m) for m in MODES for b in batches):
        part(batch, f"sample, {MODES[mode]}", partial(drawn_compiled, batch, mode), 20)
        context.free()


def models(context: Context) -> tuple[Model, Model]:
    """Return teacher and student with weights of the sampling precision."""
    recipe, teacher = context.recipe(), teacher_of(context)
    stage = recipe.distill.plan().stages[0]
    student = student_of(teacher, stage, recipe.distill.w, w_dim=recipe.network.w_dim).eval()
    student.requires_grad_(False)
    if context.device == "cuda":
        teacher.network.to(torch.bfloat16)
        student.network.to(torch.bfloat16)
    return teacher, student


def classes(context: Context, batch: int) -> Tensor:
    return (torch.arange(batch) % 10).to(context.device)


def bare_forwards(context: Context, student: Model, batch: int) -> Work:
    """Return as many calls of the stock network as the student has steps."""
    dtype, cond = student.network.dtype, classes(context, batch)
    z = torch.randn(batch, 3, 32, 32, device=context.device, dtype=dtype)
    features = w_features(torch.ones(batch, device=context.device), student.w_dim or 2).to(dtype)
    times = [timestep_from_phi(torch.full((batch,), phi)) for phi in cosine(STEPS)[:-1]]
    times = [t.to(context.device) for t in times]

    def forwards() -> None:
        with torch.no_grad():
            for t in times:
                student.network(
                    z, t, None, class_labels=cond, timestep_cond=features, return_dict=False
                )

    return forwards


def graphed(context: Context, work: Work) -> Work:
    """Return the replay of the kernels that work launches."""
    if context.device != "cuda":
        raise RuntimeError("CUDA graphs need a GPU")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def compiled(context: Context, student: Model, mode: str) -> Model:
    """Return the student with its network compiled."""
    if context.device != "cuda" and mode == "reduce-overhead":
        raise RuntimeError("CUDA graphs need a GPU")
    context.free()
    other = copy.deepcopy(student)
    other.network = torch.compile(other.network, mode=mode)
    return other


def long(context: Context, teacher: Model, batch: int) -> Row:
    """Return the time of the teacher's many guided steps, measured once, in whole."""
    steps, guided = context.short(LONG, 4), Guided(teacher, teacher.null_cond)
    cond = classes(context, batch)
    draw: Callable[[int], Tensor] = lambda n: fewstep.sample(guided, cond, w=W, steps=n)  # noqa: E731
    draw(4)
    begun = context.now()
    draw(steps)
    taken = context.now() - begun
    return {
        "steps": steps,
        "ms": 1e3 * taken,
        "ms per image": 1e3 * taken / batch,
        "measured at": time.strftime("%Y-%m-%d", time.gmtime()),
    }
