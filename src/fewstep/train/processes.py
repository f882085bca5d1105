"""The processes of a run: one, or as many as torchrun or `accelerate launch` has started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from fewstep.errors import ProcessLostError

# How long a process waits for one that is there and does not answer; one that died is noticed at
# once. Images are decoded within this time, by one process while the others wait.
PATIENCE = timedelta(seconds=float(os.environ.get("FEWSTEP_PATIENCE", "3600")))


def processes(device: str | None = None) -> PartialState:
    """Return what accelerate knows of this run's processes, joining them at the first call.

    device: "cpu" or "cuda"; None takes what there is. The first call decides.
    """
    on_cpu = device == "cpu" or (device is None and not torch.cuda.is_available())
    return PartialState(cpu=on_cpu, timeout=PATIENCE)


@contextmanager
def lost_processes_are_said() -> Iterator[None]:
    """Turn what a collective operation raises when another process is gone into one line."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)
        if not lost:
            raise
        # From the launcher's words: the other may be gone before this one has joined it.
        rank, world = (os.environ.get(name, "?") for name in ("RANK", "WORLD_SIZE"))
        raise ProcessLostError(
            f"process {rank} of {world} stops: another one died or does "
            f"not answer ({str(error).strip().splitlines()[0][:120]}). The last checkpoint is "
            "kept; look for the other's own error, and run the same command to go on."
        ) from None


def leave() -> None:
    """Leave the other processes in good order, all at once; nothing to do where there are none.

    Without it the first to end closes its connections while another may still be reading.
    """
    if dist.is_available() and dist.is_initialized():
        with lost_processes_are_said():
            dist.barrier()
            dist.destroy_process_group()


def summed(values: Tensor) -> Tensor:
    """Return the sum of values over all processes."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def whole(value: Tensor) -> Tensor:
    """Return a tensor that processes share in pieces as one; every process must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def shared_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return this process's piece of value, cut as the parameter of that shape is."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def piece(value: Tensor) -> Tensor:
    """Return the memory that this process holds of a tensor, without its gradient."""
    value = value.detach()
    return value.to_local() if isinstance(value, DTensor) else value
