"""How much of the device's arithmetic is used: FLOPs counted, peak measured, eager and compiled."""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import Result, Row, Setting, Table, Times, Work, alternate, beside_training
from networks import SUBJECTS, Subject
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from training_step import STAGES, config, kept

import fewstep

NAMES = {"cpu": ("cifar10-small",), "cuda": ("digits", "cifar10-small", "latent")}
STEPS = 4
SIDE = {"cpu": 2048, "cuda": 8192}  # of the product that is the peak
ROUNDS = {"cpu": 8, "cuda": 40}


def peak(setting: Setting) -> float:
    """Return FLOP a second of the device's best product of two square matrices, in its format."""
    side = SIDE[setting.device.type]
    a, b = (torch.randn(side, side, device=setting.device, dtype=setting.dtype) for _ in range(2))
    times = alternate(setting, {"product": lambda: a @ b}, 8, warm=2)
    return 2 * side**3 / min(times.wall["product"])


def operations(work: Work) -> int:
    """Return the FLOPs of products and convolutions, forward and backward, that work asks for."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def training(setting: Setting, subject: Subject, stage: str, most: float) -> Row:
    """Return an update's row: `fewstep.train`, with and without `compile`."""
    problem, _ = STAGES[stage](setting, subject)
    rounds = ROUNDS[setting.device.type]
    seconds = {}
    for compiled in (False, True):
        told = config(setting, subject, rounds + 4).model_copy(update={"compile": compiled})
        with tempfile.TemporaryDirectory() as folder:
            torch.compiler.reset()
            load, where = kept(subject), Path(folder)
            times = beside_training(
                setting, subject.fresh(), problem, load, told, where, {}, warm=3
            )
        seconds[compiled] = statistics.median(times.wall["fewstep"])
    count = operations(lambda: _one_update(subject, problem))
    return _row(f"{subject.name}, {stage}", subject.batch, count, seconds, most)


def _one_update(subject: Subject, problem: Any) -> None:
    r = problem(subject.x, subject.cond, torch.Generator(subject.x.device).manual_seed(0))
    v: Tensor = subject.fresh()(r.z, r.phi, r.cond, r.w)
    (v - r.v_target).square().mean().backward()


def sampling(setting: Setting, subject: Subject, batch: int, most: float) -> Row:
    """Return the row of one batch by `fewstep.sample`: as it is, and its network compiled."""
    cond = torch.arange(batch, device=setting.device) % 10
    # On a GPU small batches wait for launches, which graphs of kernels take together.
    mode = "reduce-overhead" if setting.device.type == "cuda" and batch == 1 else "default"
    torch.compiler.reset()
    compiled = copy.deepcopy(subject.student)
    compiled.network = torch.compile(compiled.network, mode=mode)

    def draw(model: Any) -> Callable[[], Tensor]:
        return lambda: fewstep.sample(model, cond, w=1.0, steps=STEPS)

    sides = {"eager": draw(subject.student), "compiled": draw(compiled)}
    times: Times = alternate(setting, sides, ROUNDS[setting.device.type], warm=3)
    seconds = {n == "compiled": statistics.median(t) for n, t in times.wall.items()}
    count = operations(sides["eager"])
    return _row(f"{subject.name}, {STEPS} steps, batch {batch}", batch, count, seconds, most)


def _row(what: str, images: int, flops: int, seconds: dict[bool, float], most: float) -> Row:
    row: Row = {"what": what, "GFLOP": flops / 1e9}
    for compiled, said in ((False, "eager"), (True, "compiled")):
        taken = seconds[compiled]
        row |= {
            f"{said}, ms": 1e3 * taken,
            f"{said}, images/s": images / taken,
            f"{said}, of the peak": flops / taken / most,
        }
    return row


def run(setting: Setting) -> Result:
    most = peak(setting)
    subjects = {name: SUBJECTS[name](setting) for name in NAMES[setting.device.type]}
    updates = [training(setting, s, stage, most) for s in subjects.values() for stage in STAGES]
    drawn = subjects["cifar10-small"]
    if setting.dtype != torch.float32:
        drawn.student.network.to(setting.dtype)
    samples = [sampling(setting, drawn, batch, most) for batch in (1, 64)]
    product: Row = {
        "what": f"product of two matrices of {SIDE[setting.device.type]:,}", "GFLOP/s": most / 1e9
    }  # fmt: skip
    return Result(
        __doc__ + ABOUT,
        [
            Table("Peak", [product]),
            Table("An update of fewstep.train", updates),
            Table("fewstep.sample", samples),
        ],
    )


ABOUT = """

FLOPs are those of matrix products and convolutions, counted by torch as they are asked for, forward
and backward; two a multiplication and addition. The peak is the fastest product that this device
was seen to make in the same format, so "of the peak" is what the networks' own operations reach of
it. "compiled" is torch.compile, of the student in training and of the network in sampling; on a GPU
at batch 1 in the mode that replays graphs of kernels.
"""
