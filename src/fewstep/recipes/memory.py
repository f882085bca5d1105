"""The memory of one stage: foreseen before it is trained, measured after."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fewstep.core.cond import take
from fewstep.distill.problem import Problem
from fewstep.train import Batch, Estimate, TrainConfig, Watch, estimate, processes


@dataclass(frozen=True)
class Memory:
    """What a stage is thought to need, and a watch on what it takes."""

    estimate: Estimate
    watch: Watch

    @classmethod
    def foreseen(
        cls,
        student: nn.Module,
        problem: Problem,
        config: TrainConfig,
        batch: Batch,
        device: str | None,
        bare: int | None = None,
    ) -> Memory:
        """Estimate, and begin to watch; to be asked right before `train`.

        bare: of the watch on the first stage of this process.
        """
        here = processes(device)
        # The part that this process begins with: a stream deals no others.
        first, parts = here.process_index, here.num_processes * config.accumulate
        x, cond = batch(0, first * config.accumulate, parts)
        one = slice(0, 1)
        found = estimate(
            student, problem, config, x[one], take(cond, one), processes=here.num_processes
        )
        return cls(found, Watch(here.device, found.weights, bare))

    def measured(self) -> dict[str, int]:
        """Return what the card says: both, in bytes."""
        return {
            "memory_estimate_bytes": self.estimate.total,
            "memory_peak_bytes": self.watch.peak(),
        }

    def __str__(self) -> str:
        """Return the estimate in a line."""
        return str(self.estimate)
