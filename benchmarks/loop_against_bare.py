"""A whole call of `fewstep.train` against forward, backward and step alone.

With its set-up, log, average and one checkpoint, on the smallest network there is.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import Result, Setting, Table, alternate
from networks import SUBJECTS
from torch import Tensor

from fewstep.core.seed import generator
from fewstep.data import indices, open_dataset
from fewstep.distill.pretrain import Pretrain
from fewstep.distill.problem import loss
from fewstep.train import TrainConfig, train

UPDATES, BATCH = 60, 64


def run(setting: Setting) -> Result:
    subject, data = SUBJECTS["digits"](setting), open_dataset("digits")
    problem = Pretrain(subject.null_cond)
    looped, bare = subject.fresh(), subject.fresh()
    optimizer = torch.optim.AdamW(bare.parameters(), fused=True)

    def batch(update: int, part: int, parts: int) -> tuple[Tensor, Any]:
        return data.batch(indices(0, update, BATCH // parts, len(data), rank=part, world=parts))

    def loop() -> None:
        config = TrainConfig(updates=UPDATES, batch_size=BATCH, checkpoint_every=250)
        device = setting.device.type
        with tempfile.TemporaryDirectory() as folder:
            train(looped, problem, batch, config, Path(folder), device=device, progress=False)

    def plain() -> None:
        for update in range(UPDATES):
            x, cond = (t.to(setting.device) for t in batch(update, 0, 1))
            r = problem(x, cond, generator(setting.device, update))
            loss(bare(r.z, r.phi, r.cond, r.w), r.v_target, r.phi).backward()
            torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    times = alternate(setting, {"loop": loop, "plain": plain}, 5)
    row = times.ratio(f"digits, {UPDATES} updates of {BATCH}", "loop", "plain")
    return Result(__doc__, [Table("train / bare updates", [row])])
