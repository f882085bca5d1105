"""A checkpoint of a run, written and read back, against writing the same tensors bare."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import Peak, Result, Row, Setting, Table, alternate, bytes_of
from safetensors.torch import save_file
from torch import Tensor

from fewstep.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

PARAMETERS = (100_000, 1_000_000, 4_000_000, 16_000_000)
TENSORS, RUN = 100, {"seed": 0}


def state(parameters: int) -> Checkpoint:
    """Return the checkpoint of a network of so many parameters in equal tensors."""
    drawn = torch.Generator().manual_seed(0)

    def tensors() -> dict[str, Tensor]:
        shape = (parameters // TENSORS,)
        return {f"layer.{i:03d}": torch.randn(shape, generator=drawn) for i in range(TENSORS)}

    weights = tensors()
    # Two tensors, not one twice: torch.save writes a tensor that it has seen no second time.
    moments: dict[int, Any] = {
        i: {"step": torch.tensor(1.0), "exp_avg": a, "exp_avg_sq": b}
        for i, (a, b) in enumerate(zip(tensors().values(), tensors().values(), strict=True))
    }
    adamw = {"state": moments, "param_groups": [{"lr": 1e-3, "params": list(range(TENSORS))}]}
    return Checkpoint(1, weights, tensors(), {"adamw": adamw})


def rows(setting: Setting, folder: Path, parameters: int) -> tuple[Row, Row]:
    checkpoint = state(parameters)
    plain = folder / "plain"
    plain.mkdir(parents=True)

    def write() -> None:
        save_checkpoint(folder / "checkpoints", checkpoint, RUN, keep=1)

    def bare() -> None:
        save_file(checkpoint.weights, plain / "weights.safetensors")
        save_file(checkpoint.ema, plain / "ema.safetensors")
        torch.save(checkpoint.optimizer, plain / "optimizer.pt")

    def read() -> None:
        load_checkpoint(folder / "checkpoints", RUN, torch.device("cpu"))

    times = alternate(setting, {"write": write, "bare": bare}, 3)
    back = alternate(setting, {"read": read}, 3)
    size = sum(f.stat().st_size for f in (folder / "checkpoints").rglob("*") if f.is_file())
    held = bytes_of([*checkpoint.weights.values(), *checkpoint.ema.values()])
    middle = {n: statistics.median(w) for n, w in {**times.wall, **back.wall}.items()}
    growth = {
        "parameters": parameters, "file MiB": size / 2**20, "weights and average MiB": held / 2**20,
        "write, s": middle["write"], "read, s": middle["read"],
        "read peak MiB": Peak(Setting()).of(read) / 2**20,
    }  # fmt: skip
    return growth, times.ratio(f"{parameters:,} parameters", "write", "bare")


def run(setting: Setting) -> Result:
    with tempfile.TemporaryDirectory() as temporary:
        found = [rows(setting, Path(temporary) / str(n), n) for n in PARAMETERS]
    return Result(
        __doc__ + ABOUT,
        [
            Table("Growth with parameters", [g for g, _ in found]),
            Table("save_checkpoint / the same files, bare", [r for _, r in found]),
        ],
    )


ABOUT = """

What `save_checkpoint` adds to the files is a hash of each, which a resume compares, and flushing
them to the disk before the rename, without which a checkpoint may be half there after a crash.
"""
