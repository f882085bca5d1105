"""Numbered work, dealt to all processes batch by batch, and its results in order in one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from fewstep.errors import NonFiniteError
from fewstep.train import agreed, gathered, rank_and_count

T = TypeVar("T")


def dealt(count: int, size: int, make: Callable[[range], T]) -> Iterator[list[tuple[range, T]]]:
    """Yield what `make` returns of the numbers 0 to count - 1, in turns of a batch per process.

    All processes must go through it; the main one gets the batches of a turn, in their order, and
    the others get nothing. A batch has at most `size` numbers, and fewer where every process can
    have a share then: with at least `size` of them per process the batches, and with them every bit
    of the results, do not depend on the number of processes.

    Raises in every process the NonFiniteError that `make` raised in one of them.
    """
    rank, processes = rank_and_count()
    size = max(1, min(size, -(-count // processes)))
    parts = [range(first, min(first + size, count)) for first in range(0, count, size)]
    for first in range(0, len(parts), processes):
        turn = parts[first : first + processes]
        made: T | NonFiniteError | None = None
        if rank < len(turn):
            try:
                made = make(turn[rank])
            except NonFiniteError as error:
                made = error
        results = gathered(made)
        failed = next((r for r in results if isinstance(r, NonFiniteError)), None)
        failed = agreed(failed)
        if failed is not None:
            raise failed
        if results:
            yield list(zip(turn, results, strict=False))  # type: ignore[arg-type]
