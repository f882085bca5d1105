"""A small network on 2-D points, and a plain loop: what a user brings."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fewstep.core.cond import Cond
from fewstep.core.seed import derive, generator
from fewstep.distill.problem import Problem, loss
from fewstep.testing import Mixture

CLASSES, BATCH = 3, 512


class Net(nn.Module):
    """v = net(z, phi, cond, w): angle, class and w enter as plain features."""

    passes = 1

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.classes = nn.Embedding(CLASSES + 1, 16)
            self.into = nn.Linear(2 + 4 + 16 + 2, width)
            self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
            self.out = nn.Linear(width, 2)

    def forward(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        assert isinstance(cond, Tensor)
        angles = torch.stack([phi.sin(), phi.cos(), (2 * phi).sin(), (4 * phi).cos()], dim=1)
        features = torch.stack([w / 4, (w / 4).square()], dim=1)
        h = self.into(torch.cat([z, angles, self.classes(cond), features], dim=1))
        for layer in self.hidden:
            h = h + nn.functional.silu(layer(nn.functional.silu(h)))
        out: Tensor = self.out(h)
        return out


def fit(student: Net, problem: Problem, data: Mixture, updates: int, seed: int, lr: float) -> Net:
    """Return a trained copy of the student: Adam, a linear fall of lr, an average of weights."""
    student = copy.deepcopy(student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, fused=True, weight_decay=0.0)
    average = copy.deepcopy(student).requires_grad_(False)
    for update in range(updates):
        draws = generator("cpu", derive(seed, "toy"), update)
        cond = torch.randint(0, CLASSES, (BATCH,), generator=draws)
        r = problem(data.draw(cond, draws), cond, draws)
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - update / updates)
        loss(student(r.z, r.phi, r.cond, r.w), r.v_target, r.phi).backward()
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(list(average.parameters()), list(student.parameters()), 0.02)
    return average
