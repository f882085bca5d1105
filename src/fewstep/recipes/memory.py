"""The memory of one stage: estimated and checked before it is trained, measured after."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.core.cond import Cond, take
from fewstep.distill.problem import Problem
from fewstep.errors import RangeError, in_units
from fewstep.train import (
    Estimate,
    TrainConfig,
    Watch,
    estimate,
    memory_limit,
    processes,
)

# Copies in float32 of a trained weight: itself, its gradient, its average, and the two moments.
COPIES = {"adamw": 5.0, "adamw8bit": 3.5}


@dataclass(frozen=True)
class Memory:
    """The estimate of what a stage needs, and a watch on what it takes."""

    estimate: Estimate
    watch: Watch

    @classmethod
    def foreseen(
        cls,
        student: nn.Module,
        problem: Problem,
        config: TrainConfig,
        example: tuple[Tensor, Cond],
        device: str | None,
        bare: int | None = None,
    ) -> Memory:
        """Estimate, and begin to watch; to be called right before `train`.

        example: one or more examples of the data, of which the first is looked at.
        bare: of the watch on the first stage of this process.
        """
        here = processes(device)
        x, cond = example
        one = slice(0, 1)
        found = estimate(
            student, problem, config, x[one], take(cond, one), processes=here.num_processes
        )
        return cls(found, Watch(here.device, found.weights, bare))

    def check(self, name: str, config: TrainConfig) -> None:
        """Raise RangeError where the stage cannot fit into the memory of its device."""
        check_room(name, self.estimate.total, config, self.watch.device)

    def measured(self) -> dict[str, int]:
        """Return the estimate and, where it is known, the peak in bytes, for the card."""
        peak = self.watch.peak()
        return {
            "memory_estimate_bytes": self.estimate.total,
            **({} if peak is None else {"memory_peak_bytes": peak}),
        }

    def __str__(self) -> str:
        """Return the estimate in a line."""
        return str(self.estimate)


def check_room(name: str, needed: float, config: TrainConfig, place: torch.device) -> None:
    """Raise RangeError where a stage needs more bytes than its device has."""
    limit = memory_limit(place)
    if needed > limit:
        raise RangeError(
            f"{name} must fit into the {in_units(limit)} of memory that "
            f"{'the GPU has' if place.type == 'cuda' else 'this process may use'}, and it needs "
            f"about {in_units(int(needed))} (batch_size {config.batch_size}, accumulate "
            f"{config.accumulate}). Raise accumulate, set "
            "checkpoint_activations=true or optimizer=adamw8bit, or use a smaller batch or network."
        )
