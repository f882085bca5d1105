"""Sums of losses and gradient norms that stay on the device until they are read."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch

from fewstep.train.processes import summed


class Reading(NamedTuple):
    """What the updates since the last reading averaged.

    first: the first of them, 1 for the first of the training. finite: whether loss and gradient
    norm are, (loss, norm).
    """

    first: int
    loss: float
    norm: float
    rate: float
    finite: tuple[bool, bool]


class Readings:
    """The sums of the updates since the last reading; nothing waits for the device until then."""

    def __init__(self, device: torch.device, processes: int, process: int) -> None:
        """Begin with no updates. process: number of this one of `processes`."""
        self.device, self.processes, self.process = device, processes, process
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.loss_sum = torch.zeros((), device=self.device)
        self.norm_sum = torch.zeros((), device=self.device)
        self.count, self._untimed, self._since = 0, 0, time.perf_counter()

    def read(self, update: int) -> Reading:
        """Return the means over all processes; waits for the device. update: the latest."""
        # A number that is not finite in one process makes the sum non-finite: all stop together.
        total = summed(self.loss_sum) / self.processes
        norms = summed(self.norm_sum) / self.processes
        finite = bool(torch.isfinite(total)), bool(torch.isfinite(norms))
        means = float(total) / self.count, float(norms) / self.count
        # The device has finished these updates only now.
        rate = (self.count - self._untimed) / (time.perf_counter() - self._since)
        return Reading(update - self.count + 1, *means, rate, finite)

    def are_finite(self) -> bool:
        """Whether all losses and gradients since the last reading are finite."""
        return not self.count or bool(torch.isfinite(summed(self.loss_sum + self.norm_sum)))

    def state(self) -> dict[str, Any]:
        """Return the sums of all processes, (processes, 2), and the number of updates."""
        sums = torch.zeros(self.processes, 2, device=self.device)
        sums[self.process] = torch.stack([self.loss_sum, self.norm_sum])
        return {"sums": summed(sums).cpu(), "count": self.count}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the state of as many processes; that of another number is left out."""
        if len(state["sums"]) == self.processes:
            sums = state["sums"][self.process].to(self.device)
            self.loss_sum, self.norm_sum = sums[0].clone(), sums[1].clone()
            self.count = self._untimed = int(state["count"])
