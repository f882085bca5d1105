"""Numbered work that is shared by all processes, with its results in order in the main one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from fewstep.errors import NonFiniteError
from fewstep.train import agreed, gathered, rank_and_count

T = TypeVar("T")


def dealt(count: int, size: int, make: Callable[[range], T]) -> Iterator[list[tuple[range, T]]]:
    """Yield what `make` returns of the numbers 0 to count - 1, in turns of a batch per process.

    All processes must go through it. The main one gets the batches of a turn, in their order, and
    the others get nothing. A batch has `size` numbers, or fewer if there are not enough for every
    process. With at least `size` numbers per process, the batches are the same for any number of
    processes, and so is every bit of the results.

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
