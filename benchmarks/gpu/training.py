"""Steps `train` and `sweep`: an update of training against its parts, and against the device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from benchmarks.gpu.common import (
    Context,
    Record,
    Row,
    examples,
    median_ms,
    parameters,
    pretraining,
    teacher_of,
    timed_training,
    update_flops,
)
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, record_function

from fewstep.core.denoiser import Guided
from fewstep.core.seed import generator
from fewstep.distill.plan import Stage
from fewstep.distill.problem import loss
from fewstep.models import Model, student_of
from fewstep.train.loop import _Loop

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
SPAN = "one update"


def run_train(context: Context) -> None:
    """Measure the recipe's own batch: peak, eager, parts, compiled, waits, channels_last."""
    record = Record("train", context)
    peak = record.part("peak", lambda: peaks(context))
    size = context.recipe().teacher.batch_size
    teacher = teacher_of(context)
    flops = record.part("flops", lambda: of_network(context, teacher))
    updates = context.short(40, 2)

    def timed(layout: torch.memory_format, *, compiled: bool = False) -> Callable[[], Row]:
        def work() -> Row:
            student = copy.deepcopy(teacher).train()
            torch.nn.Module.to(student, memory_format=layout)  # type: ignore[call-overload]
            row = timed_training(
                context, student, pretraining(teacher), size=size, updates=updates, warm=5,
                compile=compiled,
            )  # fmt: skip
            row["cudnn.benchmark"] = torch.backends.cudnn.benchmark
            context.free()
            return with_use(row, flops and flops["update per image"], peak)

        return work

    plain, last = torch.contiguous_format, torch.channels_last
    eager = record.part("eager", timed(plain), need=8)
    record.part("parts", lambda: parts(context, teacher, eager), need=8)
    torch.backends.cudnn.benchmark = True
    searched = record.part("eager, cudnn.benchmark", timed(plain), need=12)
    # The leg compiles again, from the cache of this compilation, and must find the same settings.
    torch.backends.cudnn.benchmark = pays(searched, eager)
    record.part("compiled", timed(plain, compiled=True), need=45)
    record.part("waits", lambda: waits(context, teacher), need=15)
    record.part("eager, channels_last", timed(last), need=8)
    torch.backends.cudnn.benchmark = False


def pays(row: Row | None, than: Row | None) -> bool:
    """Return whether a setting makes updates at least 5 % faster."""
    if row is None or than is None:
        return False
    return bool(row["images_per_second"] > 1.05 * than["images_per_second"])


def run_sweep(context: Context) -> None:
    """Measure batch sizes, and the stages of distillation."""
    record = Record("sweep", context)
    peak = record.part("peak", lambda: peaks(context))
    teacher = teacher_of(context)
    flops = update_flops(context, teacher, pretraining(teacher))
    for size in (32, 64, 128, 256, 512, 1024, 2048) if not context.tiny else (2, 4):
        updates = max(4, min(40, 8000 // size)) if not context.tiny else 2
        row = partial(sweep_row, context, teacher, pretraining(teacher), flops, peak, size, updates)
        record.part(f"teacher, batch {size}", row, need=6)
    for stage in (Stage("stage-one", "teacher", updates=1), *context.recipe().distill.plan()):
        record.part(stage.name, partial(distilled, context, teacher, stage, peak), need=8)


def sweep_row(
    context: Context, student: Model, problem: Any, flops: float, peak: Row, size: int, n: int
) -> Row:
    row = timed_training(
        context, copy.deepcopy(student).train(), problem, size=size, updates=n, warm=3
    )
    context.free()
    return with_use(row, flops, peak)


def distilled(context: Context, teacher: Model, stage: Stage, peak: Row) -> Row:
    """Return the row of a stage at the recipe's batch size."""
    recipe = context.recipe()
    w, size = recipe.distill.w, recipe.distill.batch_size
    parent: Model = teacher
    if stage.parent != "teacher":
        first = next(s for s in recipe.distill.plan() if s.name == stage.parent)
        parent = student_of(teacher, first, w, w_dim=recipe.network.w_dim).eval()
    student = student_of(parent, stage, w, w_dim=recipe.network.w_dim)
    guided = Guided(parent, parent.null_cond) if parent is teacher else parent
    problem = stage.problem(guided, w)
    flops = update_flops(context, student, problem)
    return sweep_row(context, student, problem, flops, peak, size, context.short(20, 2))


def peaks(context: Context) -> Row:
    """Return the best rates seen: a bf16 and an fp32 product of matrices, and a copy."""
    side = context.short(8192, 256)
    dtype = torch.bfloat16 if context.device == "cuda" else torch.float32
    a, b = (torch.randn(side, side, device=context.device, dtype=dtype) for _ in range(2))
    product = median_ms(context, lambda: a @ b, context.short(20, 3), warm=5, calls=2)
    x = torch.randn(context.short(2**29, 2**16), device=context.device)
    y = torch.empty_like(x)
    copied = median_ms(context, lambda: y.copy_(x), context.short(10, 3))
    return {
        "side": side,
        "dtype": str(dtype).removeprefix("torch."),
        "TFLOP/s": 2 * side**3 / product["from"] / 1e9,
        "copy TB/s": 2 * x.numel() * x.element_size() / copied["from"] / 1e9,
    }


def of_network(context: Context, teacher: Model) -> Row:
    """Return the size of the network, and the GFLOP of one image."""
    update = update_flops(context, teacher, pretraining(teacher))
    return {"parameters": parameters(teacher), "update per image": update}


def with_use(row: Row, flops: float | None, peak: Row | None) -> Row:
    """Return the row with the rate of arithmetic, and its share of the measured peak."""
    if flops is None or peak is None:
        return row
    rate = flops * row["images_per_second"] / 1e12
    return {**row, "TFLOP/s": rate, "of the peak": rate / peak["TFLOP/s"]}


def parts(context: Context, teacher: Model, eager: Row | None) -> Row:
    """Return the time of a bare update on tensors that are there, and the loop's time over it."""
    size = context.recipe().teacher.batch_size
    x, cond = examples(context, size)
    problem, student = pretraining(teacher), copy.deepcopy(teacher).train()
    trained = list(student.parameters())
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    average = [p.detach().clone() for p in trained]
    rng = generator(x.device, 0)

    def update() -> None:
        with context.autocast():
            r = problem(x, cond, rng)
            v = student(r.z, r.phi, r.cond, r.w)
        loss(v, r.v_target, r.phi).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(average, [p.detach() for p in trained], 0.01)

    row = median_ms(context, update, 3, warm=3, calls=context.short(15, 1))
    if eager is not None:
        row["fewstep.train / parts"] = eager["ms"] / row["ms"]
    context.free()
    return row


def waits(context: Context, teacher: Model) -> Row:
    """Return how often the host waits for the device within the updates of `fewstep.train`.

    Counted twice: the calls that wait in a profile of the updates, and torch's own warnings.
    """
    size = context.recipe().teacher.batch_size
    plain, watched = _Loop._step, 0
    cuda = context.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    profiler = profile(activities=activities)

    def step(self: _Loop) -> None:
        nonlocal watched
        if self.update == 5:
            profiler.__enter__()
        if 5 <= self.update < 10:
            watched += 1
            with record_function(SPAN):
                plain(self)
        else:
            if self.update == 10:
                profiler.__exit__(None, None, None)
            plain(self)

    _Loop._step = step  # type: ignore[method-assign]
    try:
        student = copy.deepcopy(teacher).train()
        timed_training(context, student, pretraining(teacher), size=size, updates=8, warm=3)
    finally:
        _Loop._step = plain  # type: ignore[method-assign]
        context.free()
    events = [e for e in profiler.events() or () if e.device_type == DeviceType.CPU]
    spans = [e.time_range for e in events if e.name == SPAN]
    spans = [s for s in spans if s.elapsed_us() > 0][:watched]

    def inside(e: Any) -> bool:
        return any(s.start <= e.time_range.start <= s.end for s in spans)

    found: dict[str, int] = {}
    for e in events:
        if e.name in WAITS and inside(e):
            found[e.name] = found.get(e.name, 0) + 1
    launches = sum(e.name.startswith(("cudaLaunchKernel", "cuLaunchKernel")) for e in events)
    return {
        "updates": watched,
        "waits": found,
        "waits per update": sum(found.values()) / max(1, watched),
        "kernel launches per update": launches / max(1, watched),
    }
