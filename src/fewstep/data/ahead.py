"""Make the next batch while the network works on this one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
Key = tuple[int, int, int]


class Ahead(Generic[T]):
    """A batch function that answers (update, part, parts) and begins on update + 1.

    It answers what the function answers, in any order of questions; only the time differs.
    """

    def __init__(self, batch: Callable[[int, int, int], T]) -> None:
        """Wrap a pure function."""
        self._batch = batch
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fewstep-batch")
        self._begun: dict[Key, Future[T]] = {}

    def __call__(self, update: int, part: int, parts: int) -> T:
        """Return batch(update, part, parts); raises what it raises."""
        begun = self._begun.pop((update, part, parts), None)
        answer = self._batch(update, part, parts) if begun is None else begun.result()
        following = (update + 1, part, parts)
        self._begun = {k: f for k, f in self._begun.items() if k[0] >= update}
        self._begun[following] = self._pool.submit(self._batch, *following)
        return answer
