"""One process of a small training run; `test_processes` starts one or several.

Usage: many.py FOLDER SETTINGS. SETTINGS is JSON: of TrainConfig, and "kill": {rank: update}, at
which a process kills itself with SIGKILL; several wait for each other, so that none sees another
one die; "late": the rank whose time is up at once; "cut": {rank: update}, at whose checkpoint a
process kills itself once its part is written; "elsewhere": {rank: folder} that a process writes its
part into. Exit code 3 and a line on stderr for a FewstepError.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageWriter

from fewstep import time_limit
from fewstep.core.cond import Cond
from fewstep.core.seed import generator
from fewstep.distill.pretrain import Pretrain
from fewstep.errors import FewstepError
from fewstep.train import TrainConfig, leave, train

BATCH = 16


class Net(nn.Module):
    """A denoiser on 4x4 images: blocks in a list, dropout, an uneven number of rows, one number."""

    passes = 1

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(18, 33)
        self.blocks = nn.ModuleList(nn.Linear(33, 33) for _ in range(2))
        self.last = nn.Linear(33, 16)
        self.gain = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout(0.1)
        g = generator("cpu", 0, "init")
        for p in self.parameters():
            p.data.copy_(0.2 * torch.randn(p.shape, generator=g))

    def forward(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        assert isinstance(cond, Tensor)
        h = self.first(torch.cat([z.flatten(1), phi[:, None], cond[:, None].float()], dim=1))
        for block in self.blocks:
            h = h + self.dropout(torch.tanh(block(h)))
        out: Tensor = (self.last(h) * (1 + self.gain)).unflatten(1, (1, 4, 4))
        return out


def main() -> None:
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    kill = {int(k): v for k, v in settings.pop("kill", {}).items()}
    cut = {int(k): v for k, v in settings.pop("cut", {}).items()}
    elsewhere = {int(k): Path(v) for k, v in settings.pop("elsewhere", {}).items()}
    late = settings.pop("late", None)
    rank = int(os.environ.get("RANK", "0"))
    whole = settings.get("batch_size", BATCH)
    torch.set_num_threads(1)

    def batch(update: int, part: int, parts: int) -> tuple[Tensor, Tensor]:
        if kill.get(rank) == update:
            (folder / f"killed-{rank}").touch()
            while not all((folder / f"killed-{r}").exists() for r in kill):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        g = generator("cpu", 7, update)
        cond = torch.randint(0, 2, (whole,), generator=g)
        x = 0.1 * torch.randn(whole, 1, 4, 4, generator=g) + (2.0 * cond - 1)[:, None, None, None]
        size = whole // parts
        mine = slice(part * size, (part + 1) * size)
        return x[mine], cond[mine]

    real = HuggingFaceStorageWriter.write_data

    def write_data(self: Any, *arguments: Any) -> Any:
        self.path = elsewhere.get(rank, self.path)
        written = real(self, *arguments).wait()
        if rank in cut and str(self.path).endswith(f"{cut[rank]:08d}"):
            os.kill(os.getpid(), signal.SIGKILL)
        done: torch.futures.Future[Any] = torch.futures.Future()
        done.set_result(written)
        return done

    HuggingFaceStorageWriter.write_data = write_data

    shared = {"updates": 30, "batch_size": BATCH, "lr": 1e-2, "warmup": 5, "checkpoint_every": 10}
    config = TrainConfig(**{**shared, "log_every": 5, "ema": 0.9, **settings})
    try:
        with time_limit(1e-9 if rank == late else "1h"):
            train(Net(), Pretrain(torch.tensor([2])), batch, config, folder, device="cpu")
        leave()
    except FewstepError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os._exit(3)  # the other process may be gone, and with it an orderly farewell


if __name__ == "__main__":
    main()
