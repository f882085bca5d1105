"""Which examples an update sees, by counting: nothing to save, nothing to restore."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fewstep.core.seed import generator
from fewstep.errors import RangeError


def indices(
    seed: int, update: int, batch_size: int, length: int, *, rank: int = 0, world: int = 1
) -> Tensor:
    """Return which examples one process sees in one update: (batch_size,) int64, on the CPU.

    Every epoch is a permutation drawn from (seed, "epoch", epoch), and updates go through the
    epochs end to end: an example is seen once an epoch, none is dropped, and a batch may straddle
    two epochs. A pure function of its arguments.

    Args:
        seed: of the run.
        update: number of the update, from 0.
        batch_size: of one process; an update takes world * batch_size examples in all.
        length: number of examples.
        rank: of this process, 0 to world - 1; the ranks' slices, joined in order, are the batch
            that one process with world * batch_size would see.
        world: number of processes.

    Raises:
        RangeError: a number outside these ranges.
    """
    _check(update, batch_size, length, rank, world)
    start = (update * world + rank) * batch_size
    stop = start + batch_size
    parts = []
    while start < stop:
        epoch, offset = divmod(start, length)
        part = _epoch(seed, epoch, length)[offset : offset + stop - start]
        parts.append(part)
        start += len(part)
    return torch.cat(parts)


def epochs(update: int, batch_size: int, length: int, *, rank: int = 0, world: int = 1) -> Tensor:
    """Return the epoch that each example of `indices` is seen in: (batch_size,) int64."""
    _check(update, batch_size, length, rank, world)
    start = (update * world + rank) * batch_size
    return torch.arange(start, start + batch_size) // length


@functools.lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, length: int) -> Tensor:
    return torch.randperm(length, generator=generator("cpu", seed, "epoch", epoch))


def _check(update: int, batch_size: int, length: int, rank: int, world: int) -> None:
    if update < 0:
        raise RangeError(f"update = {update}; updates are numbered from 0. Give 0 or more.")
    if batch_size < 1 or length < 1:
        raise RangeError(
            f"batch_size = {batch_size} and length = {length}; both are at least 1. Give a batch "
            "size of 1 or more and data that is not empty."
        )
    if not 0 <= rank < world:
        raise RangeError(
            f"rank = {rank} of world = {world}; ranks go from 0 to world - 1. Give both as the "
            "launcher sets them."
        )
