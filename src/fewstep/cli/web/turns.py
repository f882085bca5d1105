"""Whose turn it is to draw: one drawing at a time, the student's before the teacher's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

from fewstep.errors import FewstepError


class Turns:
    """One drawing at a time. An urgent one goes first: a longer one pauses for it."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._is_taken, self._is_closed = False, False
        self._urgent = 0  # how many wait

    @contextmanager
    def turn(self, *, urgent: bool) -> Iterator[None]:
        """Wait for the turn, and have it for a `with` block.

        Raises FewstepError after `close`.
        """
        self._take(urgent)
        try:
            yield
        finally:
            self._give()

    def close(self, timeout: float) -> None:
        """Begin no more drawings, and wait so many seconds at most for the one that is made."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._is_taken, timeout)

    def _take(self, urgent: bool) -> None:
        def is_mine() -> bool:
            return self._is_closed or (not self._is_taken and (urgent or not self._urgent))

        with self._changed:
            self._urgent += urgent
            self._changed.wait_for(is_mine)
            self._urgent -= urgent
            if self._is_closed:
                raise FewstepError("the page is closed. Run `fewstep play` again.")
            self._is_taken = True

    def pause(self) -> float:
        """Let the urgent drawings go first that wait; return the seconds that they took.

        It is called by a drawing that has the turn and is not urgent. Raises FewstepError after
        `close`.
        """
        if not self._urgent and not self._is_closed:
            return 0.0
        start = time.perf_counter()
        self._give()
        self._take(urgent=False)
        return time.perf_counter() - start

    def _give(self) -> None:
        with self._changed:
            self._is_taken = False
            self._changed.notify_all()
