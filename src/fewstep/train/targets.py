"""The regression of each update: of its own batch, or of a pool that several updates share."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple, TypeAlias, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.cond import Cond
from fewstep.core.seed import derive, generator
from fewstep.distill.problem import Problem, Regression
from fewstep.errors import RangeError

Batch: TypeAlias = Callable[[int, int, int], tuple[Tensor, Cond]]


class _Pool(NamedTuple):
    """The examples of several updates, and the order in which they are dealt."""

    first: int  # update
    whole: Regression
    order: Tensor


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
        self._held: dict[int, _Pool] = {}  # by part

    def __call__(self, update: int, part: int) -> Regression:
        """Return the regression of one part of an update."""
        if self.pool == 1:
            return self._made(update, part)
        first = update - update % self.pool
        held = self._held.get(part)
        if held is None or held.first != first:
            held = None
            self._held.pop(part, None)  # before the next one is made
            whole = self._made(first, part)
            draws = generator(self.accelerator.device, self.seed, "pool", first, part)
            order = torch.randperm(len(whole.z), generator=draws, device=whole.z.device)
            held = self._held[part] = _Pool(first, whole, order)
        size = len(held.order) // self.pool
        return held.whole.take(held.order[size * (update - first) :][:size])

    def _made(self, first: int, part: int) -> Regression:
        updates = range(first, first + self.pool)
        xs, found = zip(*(self._batch(update, part) for update in updates), strict=True)
        if len({x.shape for x in xs}) > 1:
            raise RangeError(
                "pool must be 1 where the batches differ in size, got batches of "
                f"{' and '.join(sorted({str(tuple(x.shape)) for x in xs}))} in one pool of "
                f"{self.pool}. Leave pool out, or use images of one size."
            )
        x = xs[0] if self.pool == 1 else torch.cat(xs)
        cond = reduce(conds.concat, found)
        device = self.accelerator.device
        seed_dropout(derive(self.seed, "dropout", first, part), device)
        with self.accelerator.autocast():
            return self.problem(x, cond, generator(device, self.seed, "update", first, part))

    def _batch(self, update: int, part: int) -> tuple[Tensor, Cond]:
        x, cond = self.batch(update, part, self.parts)
        device = self.accelerator.device
        return cast(Tensor, conds.send(x, device)), conds.send(cond, device)


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the global generator, of which dropout alone may draw."""
    if device.type == "cpu":
        # torch.manual_seed records a stack trace for every kind of device that is missing.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
