"""LoRA against full training of the same latent U-Net: peak memory, and time of an update."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import MIB, Peak, Result, Row, Setting, Table, Times, alternate, bytes_of
from networks import W_DIM, Latent, Subject, latent
from torch import Tensor, nn

from fewstep.core.denoiser import Guided
from fewstep.distill.steps import StepDistillation
from fewstep.models import Lora
from fewstep.models.families.stable_diffusion import STABLE_DIFFUSION
from fewstep.models.lora import adapted
from fewstep.train import TrainConfig, estimate
from fewstep.train.loop import _Loop

ABOUT = """

Both sides are updates of `fewstep.train`'s own loop in stage two, from the guided teacher, on the
same batch; they take turns. The student that is trained whole is a copy of its teacher; the LoRA
one (rank 16, on the attention's projections) computes with the teacher's very weights.

"weights" are those of teacher and student, what they share counted once. "peak" is all that is
there at once: weights, gradients, moments, average, activations. "foreseen" is what
`fewstep.train.estimate` says before the start. "small" is a network of 32 and 64 channels at batch
16, where activations are most of it; "wide" one of 128 and 256 at batch 2, where weights are.
"""
LORA = Lora()
W = (0.0, 4.0)
ROUNDS = 6
SIZES: dict[str, tuple[tuple[int, int], int]] = {"small": ((32, 64), 16), "wide": ((128, 256), 2)}


@dataclass(frozen=True)
class Side:
    """One way to train: its loop, and its memory in bytes."""

    loop: _Loop
    weights: int
    trained: int
    peak: int
    foreseen: int

    def row(self, what: str) -> Row:
        """Return the row of a table, in MiB."""
        told = {"weights": self.weights, "peak": self.peak, "foreseen": self.foreseen}
        sizes = {f"{name} MiB": size / MIB for name, size in told.items()}
        return {"what": what, "trained numbers": self.trained, **sizes}


def students(subject: Subject) -> dict[str, nn.Module]:
    """Return both students, equal to the teacher at first."""
    network = adapted(subject.teacher.network, STABLE_DIFFUSION, LORA, w_dim=W_DIM, seed=0)
    return {"full": subject.fresh(), "LoRA": Latent(network).train()}


def side(setting: Setting, subject: Subject, student: nn.Module, folder: Path) -> Side:
    """Return a loop that has made two updates, and what it took."""
    config = TrainConfig(
        updates=10**6, batch_size=subject.batch, log_every=10**6, precision=setting.precision
    )
    problem = StepDistillation(Guided(subject.teacher, subject.null_cond), steps=4, w_range=W)

    def batch(update: int, part: int, parts: int) -> tuple[Tensor, Tensor]:
        del update, part, parts
        return subject.x, subject.cond

    foreseen = estimate(student, problem, config, subject.x[:1], subject.cond[:1]).total
    peak, kept = Peak(setting), _unique((student, subject.teacher))
    peak.start()
    loop = _Loop(student, problem, batch, config, folder, {"seed": 0}, setting.device.type)
    for _ in range(2):
        loop._step()
    made = peak.stop()
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    weights = bytes_of(kept)
    return Side(loop, weights, trained, weights + made, foreseen)


def _unique(modules: Iterable[nn.Module]) -> list[Tensor]:
    return list({id(p): p for module in modules for p in module.parameters()}.values())


def compare(setting: Setting, name: str, folder: Path, rounds: int = ROUNDS) -> tuple[Any, ...]:
    """Return the rows of memory and the row of time for one size."""
    channels, size = SIZES[name]
    subject = latent(setting, channels, size)
    sides = {
        kind: side(setting, subject, student, folder / kind)
        for kind, student in students(subject).items()
    }
    times: Times = alternate(setting, {k: s.loop._step for k, s in sides.items()}, rounds)
    memory = [s.row(f"{name}, {kind}") for kind, s in sides.items()]
    memory[1]["of full"] = sides["LoRA"].peak / sides["full"].peak
    return memory, times.ratio(f"{name}, LoRA / full", "LoRA", "full")


def run(setting: Setting) -> Result:
    memory: list[Row] = []
    times: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary, torch.random.fork_rng(devices=[]):
        for name in SIZES:
            rows, row = compare(setting, name, Path(temporary) / name)
            memory += rows
            times.append(row)
    return Result(
        __doc__ + ABOUT, [Table("Memory", memory), Table("Times as long an update", times)]
    )
