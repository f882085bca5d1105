"""The regression of each update: of its own batch, or of a pool that several updates share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.cond import Cond
from fewstep.core.seed import generator
from fewstep.distill.problem import Problem, Regression

Batch: TypeAlias = Callable[[int, int, int], tuple[Tensor, Cond]]


class Targets:
    """The regressions of a run, by update and part, as functions of (seed, update, part).

    With pool = P, the examples of P updates in a row are made by one call of the problem, and dealt
    to these updates at random. A run that goes on in the middle of a pool makes it again.
    """

    def __init__(
        self,
        problem: Problem,
        batch: Batch,
        accelerator: Accelerator,
        *,
        seed: int,
        parts: int,
        pool: int,
    ) -> None:
        self.problem, self.batch, self.accelerator = problem, batch, accelerator
        self.seed, self.parts, self.pool = seed, parts, pool
        self._held: dict[int, tuple[int, Regression]] = {}  # by part

    def __call__(self, update: int, part: int) -> Regression:
        """Return the regression of one part of an update."""
        if self.pool == 1:
            return self._made(update, part)
        first = update - update % self.pool
        if self._held.get(part, (None,))[0] != first:
            self._held.pop(part, None)  # before the next one is made
            self._held[part] = first, self._shuffled(self._made(first, part), first, part)
        whole = self._held[part][1]
        size = len(whole.z) // self.pool
        return whole.take(slice(size * (update - first), size * (update - first + 1)))

    def _made(self, first: int, part: int) -> Regression:
        x, cond = self._batch(first, part)
        for update in range(first + 1, first + self.pool):
            more, few = self._batch(update, part)
            x, cond = torch.cat([x, more]), conds.concat(cond, few)
        draws = generator(self.accelerator.device, self.seed, "update", first, part)
        with self.accelerator.autocast():
            return self.problem(x, cond, draws)

    def _batch(self, update: int, part: int) -> tuple[Tensor, Cond]:
        x, cond = self.batch(update, part, self.parts)
        device = self.accelerator.device
        return cast(Tensor, conds.send(x, device)), conds.send(cond, device)

    def _shuffled(self, whole: Regression, first: int, part: int) -> Regression:
        device = self.accelerator.device
        draws = generator(device, self.seed, "pool", first, part)
        return whole.take(torch.randperm(len(whole.z), generator=draws, device=device))
