"""The average of the weights after every update: seconds, and beside the optimiser's step."""

from __future__ import annotations

import statistics

import torch
from measure import Peak, Result, Row, Setting, Table, alternate

PARAMETERS, TENSORS = (100_000, 1_000_000, 10_000_000, 40_000_000), 100


def rows(setting: Setting, parameters: int) -> tuple[Row, Row]:
    shape = (parameters // TENSORS,)
    weights = [
        torch.zeros(shape, device=setting.device, requires_grad=True) for _ in range(TENSORS)
    ]
    average = [w.detach().clone() for w in weights]
    for w in weights:
        w.grad = torch.ones_like(w)
    optimizer = torch.optim.AdamW(weights, fused=True)

    def together() -> None:
        torch._foreach_lerp_(average, [w.detach() for w in weights], 0.01)

    def singly() -> None:
        with torch.no_grad():
            for e, w in zip(average, weights, strict=True):
                e.lerp_(w, 0.01)

    turns = max(5, min(50, 20_000_000 // parameters))
    sides = {"together": together, "singly": singly, "adamw": optimizer.step}
    times = alternate(setting, sides, turns)
    growth = {
        "parameters": parameters,
        **{f"{n}, ms": 1e3 * statistics.median(w) for n, w in times.wall.items()},
        "held MiB": 4 * parameters / 2**20,
        "peak MiB": Peak(setting).of(together) / 2**20,
    }
    return growth, times.ratio(f"{parameters:,} parameters", "together", "adamw")


def run(setting: Setting) -> Result:
    found = [rows(setting, n) for n in PARAMETERS]
    return Result(
        __doc__,
        [
            Table("Growth with parameters, in 100 tensors", [g for g, _ in found]),
            Table("Average / fused AdamW", [r for _, r in found]),
        ],
    )
