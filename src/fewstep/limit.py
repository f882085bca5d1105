"""Stopping cleanly, so that the work resumes later: a time limit, Ctrl-C or SIGTERM."""

from __future__ import annotations

import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from fewstep.errors import RangeError, TimeUp

_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)
_DURATION = re.compile(r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,6})s)?")


def seconds_of(text: str, name: str = "the time limit") -> float:
    """Return the seconds of a time such as 90s, 5m, 2h or 1h30m.

    name: of the setting, for the message of the RangeError for any other text, and for 0.
    """
    found = _DURATION.fullmatch(text.strip())
    hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    total = 3600.0 * hours + 60 * minutes + seconds
    if not total:
        raise RangeError(
            f"{name} must be a time above 0 in hours, minutes and seconds, such as 90s, 5m, 2h or "
            f"1h30m, got {text[:40]!r}. Pass 5m for five minutes, for example."
        )
    return total


@contextmanager
def time_limit(duration: float | str) -> Iterator[None]:
    """Stop training and measuring inside after this time in all; what was done is kept.

    duration: seconds, or a text such as "90s", "5m" or "1h30m".

    `train` writes a checkpoint and raises TimeUp; measuring raises it after a cell. The same call
    resumes. At least one update or cell is made in any case, so that repeated short runs advance.
    The result does not depend on the limit. Of nested limits the earliest counts.

    Raises RangeError unless the duration is finite and above 0.
    """
    seconds = seconds_of(duration) if isinstance(duration, str) else duration
    if not (math.isfinite(seconds) and seconds > 0):
        raise RangeError(
            f"the time limit must be a finite number of seconds above 0, got {seconds}. "
            "Pass 300 or '5m' for five minutes, for example."
        )
    token = _deadline.set(min(_deadline.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _deadline.reset(token)


def is_time_up() -> bool:
    """Return whether the time limit around this call has passed; False where there is none."""
    return time.monotonic() >= _deadline.get()


def stop_when_time_is_up(done: str, is_up: bool | None = None) -> None:
    """Raise TimeUp if the time limit around this call has passed.

    done: what is kept, in words. is_up: whether it has passed, if the processes of a run have
    agreed on that already.
    """
    if is_time_up() if is_up is None else is_up:
        raise TimeUp(f"time is up after {done}, which is kept; run the same command to continue.")


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
