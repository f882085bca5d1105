"""One process that trains a student of each of some stock folders; `test_families` starts it.

Usage: families.py OUT SETTINGS FOLDER... SETTINGS is JSON, of TrainConfig. The weights of the
student of FOLDER and its loss are written to OUT/NAME.pt.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import Stage, load
from fewstep.core.cond import Cond, repeat_null
from fewstep.core.denoiser import inside
from fewstep.core.seed import generator
from fewstep.models import Model, student_of
from fewstep.train import TrainConfig, leave, train
from fewstep.train.processes import piece

BATCH = 4


def trained(folder: Path, out: Path, config: TrainConfig) -> dict[str, Tensor]:
    parent = load(folder)
    model = parent if isinstance(parent, Model) else parent.denoiser
    assert isinstance(model, Model)
    # Flux with guidance_embeds is a stage one already.
    steps = 4 if model is parent else None
    stage = Stage("student", "teacher", updates=config.updates, steps=steps)
    student = student_of(parent, stage, (0.0, 4.0), w_dim=32, seed=0)
    null = repeat_null(model.null_cond, BATCH)

    def noisy(key: str, value: Tensor, draws: torch.Generator) -> Tensor:
        if key == "mask":
            return torch.ones_like(value)
        return value + torch.randn(value.shape, generator=draws)

    def batch(update: int, part: int, parts: int) -> tuple[Tensor, Cond]:
        draws = generator("cpu", 7, update)
        x = torch.randn(BATCH, *model.card.shape, generator=draws)
        few = slice(part * BATCH // parts, (part + 1) * BATCH // parts)
        if not isinstance(null, dict):
            return x[few], null[few] - 1
        return x[few], {k: noisy(k, v, draws)[few] for k, v in null.items()}

    problem: Any = stage.problem(parent, (0.0, 4.0), model.null_cond)
    kind: Any = type(problem)
    held: list[float] = []  # the part of the teacher's weights that this process has

    class Watched(kind):  # type: ignore[misc]
        def __call__(self, *arguments: Any) -> Any:
            found = super().__call__(*arguments)
            weights = list(inside(self.teacher).parameters())
            held.append(sum(piece(p).numel() for p in weights) / sum(p.numel() for p in weights))
            return found

    given = {f.name: getattr(problem, f.name) for f in fields(problem) if f.init}
    result = train(student, Watched(**given), batch, config, out, device="cpu", progress=False)
    losses = torch.tensor([loss for _, loss in result.losses])
    return {**result.ema_state, "loss": losses, "held": torch.tensor(held)}


def main() -> None:
    out, settings, *folders = sys.argv[1:]
    torch.set_num_threads(1)
    shared = {"updates": 3, "batch_size": BATCH, "lr": 1e-2, "warmup": 0, "log_every": 1}
    config = TrainConfig.model_validate({**shared, "ema": 0.0, **json.loads(settings)})
    for folder in map(Path, folders):
        state = trained(folder, Path(out) / folder.name, config)
        if os.environ.get("RANK", "0") == "0":
            torch.save(state, Path(out) / f"{folder.name}.pt")
    leave()


if __name__ == "__main__":
    main()
