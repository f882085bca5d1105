"""The processes of a run: one, or as many as torchrun or `accelerate launch` started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from fewstep.core.device import choose_device
from fewstep.errors import ProcessLostError, RangeError

# How long a process waits for one that does not answer; one that died is noticed at once. One
# process decodes the images within this time, while the others wait.
PATIENCE = timedelta(seconds=float(os.environ.get("FEWSTEP_PATIENCE", "3600")))
T = TypeVar("T")


def processes(device: str | None = None) -> PartialState:
    """Return accelerate's state of this run's processes, joining them at the first call.

    device: "cpu", "cuda" or "cuda:N"; None keeps the device of an earlier call, and at first takes
        a GPU where there is one.

    Raises RangeError: a device that does not exist here, or one of several processes that asks for
    one GPU by its number, or for another kind of device than before.
    """
    if device is None and PartialState._shared_state:
        return PartialState()
    chosen = torch.device(choose_device(device))
    if PartialState._shared_state:
        state = PartialState()
        # One process may train on one device after another; several cannot join twice.
        if state.num_processes == 1 and not state.use_distributed:
            if state.device.type != chosen.type:
                PartialState._reset_state()
        elif state.device.type != chosen.type:
            raise RangeError(
                f"all processes of a run must use one kind of device, {state.device.type} so far, "
                f"got {device!r}. Use that one, or start the command again."
            )
    if chosen.index is not None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RangeError(
                f"with several processes each takes its own GPU, got device {device!r}. Use cuda."
            )
        torch.cuda.set_device(chosen)  # accelerate takes the current one
    return PartialState(cpu=chosen.type == "cpu", timeout=PATIENCE)


@contextmanager
def translate_peer_failures() -> Iterator[None]:
    """Turn the error of a collective operation whose other process is gone into one line."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)
        if not lost:
            raise
        # From the launcher's variables: the other may be gone before this one has joined it.
        rank, world = (os.environ.get(name, "?") for name in ("RANK", "WORLD_SIZE"))
        raise ProcessLostError(
            f"process {rank} of {world} stops: another one died or does "
            f"not answer ({str(error).strip().splitlines()[0][:120]}). What was saved stays; "
            "look for the error of that process, and run the same command to continue."
        ) from None


def leave() -> None:
    """Wait for the other processes and leave them together; a single process does nothing.

    Without it the first to end closes its connections while another may still be reading.
    """
    if dist.is_available() and dist.is_initialized():
        with translate_peer_failures():
            dist.barrier()
            dist.destroy_process_group()


def rank_and_count() -> tuple[int, int]:
    """Return the number of this process and how many there are: (0, 1) for one that is alone."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank_and_count()[0] == 0


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block in the main process, and then in the others."""
    with translate_peer_failures():
        if not is_main():
            dist.barrier()
        yield
        if is_main() and rank_and_count()[1] > 1:
            dist.barrier()


def agreed(value: T) -> T:
    """Return the main process's value in every process; all of them must call this."""
    if rank_and_count()[1] == 1:
        return value
    box = [value]
    with translate_peer_failures():
        dist.broadcast_object_list(box)
    return box[0]


def gathered(value: T) -> list[T]:
    """Return the values of all processes, in their order, in the main one, and [] in the others."""
    rank, count = rank_and_count()
    if count == 1:
        return [value]
    out: list[T] | None = [value] * count if rank == 0 else None
    with translate_peer_failures():
        dist.gather_object(value, out)
    return out or []


def summed(values: Tensor) -> Tensor:
    """Return the sum of values over all processes."""
    if rank_and_count()[1] > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def whole(value: Tensor) -> Tensor:
    """Return a sharded tensor as one; every process must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def shared_like(value: T, parameter: Tensor) -> T | Tensor:
    """Return this process's piece of a tensor that is shaped like a sharded parameter.

    Anything else is returned as it is.
    """
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor):
        return value
    if value.shape != parameter.shape:
        return value
    mesh = parameter.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements)


def piece(value: Tensor) -> Tensor:
    """Return the piece of a tensor that this process holds, without its gradient."""
    value = value.detach()
    return value.to_local() if isinstance(value, DTensor) else value
