"""States that a teacher visits by itself, in place of noised data (math.md sections 4 and 5).

A batch of B states holds a few whole trajectories. Each evaluation of the teacher serves twice: it
is the target at its state, and it makes the step to the next one. So B states of trajectories cost
as much as B noised examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.cond import Cond
from fewstep.distill.problem import Regression
from fewstep.errors import RangeError

States: TypeAlias = Literal["noised", "trajectory"]


def check_states(states: States) -> States:
    """Return states. Raises RangeError unless it is "noised" or "trajectory"."""
    if states not in get_args(States):
        raise RangeError(f"states = {states!r}; it is 'noised' or 'trajectory'.")
    return states


def visits(batch: int, points: int) -> list[int]:
    """Return how many trajectories of `points` states visit each, so that there are `batch` states.

    Where `points` does not divide `batch`, one trajectory is left early: its first states are
    visited once more than the last ones. Raises RangeError where not even one is whole.
    """
    if batch < points:
        raise RangeError(
            f"a batch of {batch} cannot hold a trajectory of {points} states. Take at "
            f"least {points} examples at once (batch_size / accumulate / processes), fewer steps, "
            "or states: noised."
        )
    whole, rest = divmod(batch, points)
    return [whole + (k < rest) for k in range(points)]


def check_walk(states: States | None, part: int, points: int) -> None:
    """Raise RangeError where a part of a batch is to hold a trajectory, and cannot."""
    if states == "trajectory":
        visits(part, points)


def pack(
    counts: Sequence[int],
    z: Tensor,
    phi: Sequence[Tensor],
    cond: Cond,
    w: Tensor,
    target: Callable[[int, Tensor, Tensor, Cond, Tensor], Tensor],
    step: Callable[[int, Tensor, Tensor], Tensor],
) -> Regression:
    """Walk T trajectories of K states; return the states and their targets as one batch.

    counts: how many trajectories visit each state (`visits`). z: (T, *D), their first states.
    phi: K angles (T,). cond, w: T of each. target: (k, z, phi, cond, w) -> v at state k.
    step: (k, z, v) -> the state k + 1.
    """
    states: list[Tensor] = []
    angles: list[Tensor] = []
    targets: list[Tensor] = []
    for k, (n, angle) in enumerate(zip(counts, phi, strict=True)):
        if k:
            z = step(k - 1, z, targets[-1])
        z = z[:n]
        states.append(z)
        angles.append(angle[:n])
        targets.append(target(k, z, angle[:n], conds.take(cond, slice(n)), w[:n]))
    owner = torch.cat([torch.arange(n, device=z.device) for n in counts])
    z, v = torch.cat(states), torch.cat(targets)
    return Regression(z, torch.cat(angles), conds.take(cond, owner), w[owner], v)
