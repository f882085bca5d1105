"""The progress of a training run: a bar on a terminal, and a line every so often in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tqdm.auto import tqdm

EVERY = 60.0  # seconds between two lines of a log file at most
SHARE = 0.1  # of the updates between two lines of a short run
AT_LEAST = 2.0  # seconds between two lines


class Progress:
    """Shows how far a run is, with the time left.

    On a terminal this is tqdm's bar. Elsewhere it is a line on stderr after a minute or a tenth
    of the updates, whichever comes first.
    """

    def __init__(
        self, label: str, done: int, total: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin to show a run that has `done` of `total` updates behind it."""
        self._label, self._first, self._done, self._total = label, done, done, total
        self._clock, self._loss = clock, ""
        self._lines = not sys.stderr.isatty()
        self._started = self._last = clock()
        self._shown = done
        self._bar = tqdm(
            total=total, initial=done, desc=label, unit="update", disable=self._lines or None
        )

    def step(self) -> None:
        """Count an update."""
        self._done += 1
        self._bar.update()
        if self._lines and self._done < self._total:
            now = self._clock()
            waited, moved = now - self._last, self._done - self._shown
            if waited >= EVERY or (waited >= AT_LEAST and moved >= SHARE * self._total):
                self._last, self._shown = now, self._done
                sys.stderr.write(self.line(now) + "\n")
                sys.stderr.flush()

    def loss(self, value: float) -> None:
        """Show a loss from now on."""
        self._loss = f"loss {value:.4f}, "
        self._bar.set_postfix(loss=f"{value:.4f}", refresh=False)

    def close(self) -> None:
        """End the bar."""
        self._bar.close()

    def line(self, now: float) -> str:
        """Return the line of a log file at a time of the clock."""
        rate = (self._done - self._first) / max(now - self._started, 1e-9)
        left = (self._total - self._done) / rate
        return (
            f"{self._label}: update {self._done} of {self._total} "
            f"({100 * self._done // self._total} %), {self._loss}{rate:.3g} updates per second, "
            f"{duration(left)} left"
        )


def duration(seconds: float) -> str:
    """Return a time in words: 45 s, 12 min, 3 h 20 min, 2 days 4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"
