"""States that a teacher visits by itself, in place of noised data (math.md sections 4 and 5).

A batch of B states is a few whole trajectories: every evaluation that moves one on is also the
target at the state where it was asked, so that B states cost what B noised ones cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

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
            f"a batch of {batch} cannot hold a trajectory of {points} states. Use a batch (a part "
            f"of one, with several) of {points} or more, fewer steps, or states: noised."
        )
    whole, rest = divmod(batch, points)
    return [whole + (k < rest) for k in range(points)]


def owners(counts: Sequence[int], device: torch.device) -> Tensor:
    """Return which trajectory each state is of (B,), in the order of the visits."""
    return torch.cat([torch.arange(n, device=device) for n in counts])
