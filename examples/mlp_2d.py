"""Bring your own network: an MLP on 2-D points, checked, guided, distilled to four steps.

Nothing here comes from diffusers. A denoiser is any `v = f(z, phi, cond, w)` with an attribute
`passes`; a torch module that is one can be trained, guided, distilled and sampled like any other.

    python examples/mlp_2d.py        # under a minute on two CPU cores
"""

from __future__ import annotations

import copy
import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import fewstep
from fewstep.core.seed import generator
from fewstep.distill.problem import Problem
from fewstep.metrics import paired_rms
from fewstep.testing import check_denoiser, check_stage
from fewstep.train import TrainConfig, train

CLASSES = 3
NULL = torch.tensor([CLASSES])  # the class id that means "any"
W = (0.0, 4.0)


class Spirals(nn.Module):
    """Your network. It sees the angle phi of the state, the class, and the guidance weight w."""

    passes = 1

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.classes = nn.Embedding(CLASSES + 1, 16)
        self.into = nn.Linear(2 + 4 + 16, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.out = nn.Linear(width, 2)
        self.told_w = nn.Linear(2, width, bias=False)
        nn.init.zeros_(self.told_w.weight)  # a student starts as its conditional teacher

    def forward(self, z: Tensor, phi: Tensor, cond: Tensor, w: Tensor) -> Tensor:
        """Return the velocity v (B, 2)."""
        angle = torch.stack([phi.sin(), phi.cos(), (2 * phi).sin(), (4 * phi).cos()], dim=1)
        h = self.into(torch.cat([z, angle, self.classes(cond)], dim=1))
        h = h + self.told_w(torch.stack([w / 4, (w / 4) ** 2], dim=1))
        for layer in self.hidden:
            h = h + nn.functional.silu(layer(nn.functional.silu(h)))
        v: Tensor = self.out(h)
        return v


def data(update: int, part: int = 0, parts: int = 1) -> tuple[Tensor, Tensor]:
    """Return the batch of an update: points on three spiral arms, and their arms."""
    draws = generator("cpu", 0, "data", update)
    cond = torch.randint(0, CLASSES, (512,), generator=draws)
    t = torch.rand(512, generator=draws).sqrt()
    turn = 2 * math.pi * (cond / CLASSES + 0.5 * t)
    x = 1.5 * t[:, None] * torch.stack([turn.cos(), turn.sin()], dim=1)
    x += 0.04 * torch.randn(512, 2, generator=draws)
    return x.chunk(parts)[part], cond.chunk(parts)[part]


def fit(network: Spirals, problem: Problem, updates: int, folder: Path) -> Spirals:
    """Train a copy of the network on a problem; return it with its averaged weights."""
    config = TrainConfig(
        updates=updates, batch_size=512, lr=3e-3, ema=0.98, log_every=200, checkpoint_every=1000
    )
    student = copy.deepcopy(network)
    result = train(student, problem, data, config, folder, device="cpu", progress=False)
    student.load_state_dict(result.ema_state)
    return student


def main(updates: int = 1000) -> dict[str, float]:
    torch.manual_seed(0)
    runs = Path(tempfile.mkdtemp())
    x, cond = data(0)

    # 1. A teacher: your network, trained with labels dropped, guided by two passes.
    network = fit(Spirals(), fewstep.Pretrain(NULL, dropout=0.1), updates, runs / "teacher")
    teacher = fewstep.Guided(network, NULL)
    for law in check_denoiser(teacher, cond, null_cond=NULL, shape=(2,)):
        print("holds:", law)

    # 2. Stage one: one pass for every w.
    stage_one = fit(
        network, fewstep.GuidanceDistillation(teacher, w_range=W), updates, runs / "stage-one"
    )

    # 3. Stage two: 8, 4, 2, 1 steps, each student the teacher of the next.
    students: dict[int, Spirals] = {}
    parent = stage_one
    for steps in (8, 4, 2, 1):
        problem = fewstep.StepDistillation(parent, steps, substeps=2, w_range=W)
        check_stage(problem, x, cond)
        parent = students[steps] = fit(parent, problem, updates // 3, runs / f"student-{steps}")

    # 4. Compare, from the same noise.
    labels = torch.arange(1500) % CLASSES

    def draw(denoiser: fewstep.Denoiser, steps: int) -> Tensor:
        return fewstep.sample(denoiser, labels, w=1.0, steps=steps, seed=0, shape=(2,))

    reference = draw(teacher, 256)
    print(f"\n{'at w = 1':<12} {'evaluations':>11} {'distance to the teacher, 256 steps':>36}")
    rows: list[tuple[str, fewstep.Denoiser, int]] = [
        *(("teacher", teacher, n) for n in (8, 4, 2, 1)),
        *(("student", student, n) for n, student in students.items()),
    ]
    table = {}
    for name, denoiser, steps in rows:
        table[f"{name}-{steps}"] = paired_rms(draw(denoiser, steps), reference)
        print(f"{name:<12} {steps * denoiser.passes:>11} {table[f'{name}-{steps}']:>36.4f}")
    return table


if __name__ == "__main__":
    main()
