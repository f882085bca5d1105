"""Stopping a training cleanly, so that it resumes later: a time limit, Ctrl-C or SIGTERM."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from fewstep.errors import RangeError

_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Stop every `train` inside after this many seconds in all, with a checkpoint.

    `train` then raises TimeUp; the same call resumes. At least one update is made in any case, so
    that repeated short runs advance. The learning rate and the average do not depend on the limit.
    Of nested limits the earliest counts.

    Raises RangeError unless seconds is a finite number above 0.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise RangeError(
            f"the time limit must be a finite number of seconds above 0, got {seconds}. "
            "Pass 300 for five minutes, for example."
        )
    token = _deadline.set(min(_deadline.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _deadline.reset(token)


def is_time_up() -> bool:
    """Return whether the time limit around this call has passed; False where there is none."""
    return time.monotonic() >= _deadline.get()


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a flag that the loop reads between updates."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, _frame: object) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
