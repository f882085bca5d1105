"""Start commands in forked children, and disturb them.

The parent imports everything once and computes nothing, so that a child starts at once and its time
is spent in the command. A child prints into files of its own.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fewstep.cli.main import entry
from fewstep.train import loop

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir"}
PARTS = ("_step", "_part_loss", "_read", "_save")


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        code: its exit code, or the negative number of the signal that ended it.
        err: what it printed to stderr.
        seconds: how long it ran.
    """

    code: int
    err: str
    seconds: float

    @property
    def last(self) -> str:
        """The last line that it printed to stderr."""
        return (self.err.strip().splitlines() or [""])[-1]


@dataclass(frozen=True)
class Moment:
    """When a child sends itself a signal, or meets a limit.

    Attributes:
        number: the signal; None: none.
        event: after so many events, where an event is a part of an update or a change on the disk.
        size: a file cannot be larger than so many bytes, as if the disk were full; None: no limit.
        counted: file into which the child writes the number of its events; None: they are not
            counted.
    """

    number: signal.Signals | None = None
    event: int = 0
    size: int | None = None
    counted: Path | None = None


class Child:
    """A command that runs."""

    def __init__(self, arguments: list[str], cwd: Path, moment: Moment | None = None) -> None:
        """Start it in the folder `cwd`."""
        self.err = cwd / f"stderr-{time.monotonic_ns()}.txt"
        self.began = time.monotonic()
        self.process = os.fork()
        if self.process == 0:
            _become(arguments, cwd, self.err, moment or Moment())

    def ended(self) -> Ended:
        """Wait for its end."""
        _, status = os.waitpid(self.process, 0)
        text = self.err.read_text(errors="replace") if self.err.exists() else ""
        self.err.unlink(missing_ok=True)
        return Ended(os.waitstatus_to_exitcode(status), text, time.monotonic() - self.began)

    def signal_after(self, seconds: float, number: signal.Signals) -> Ended:
        """Send a signal after a time, or nothing if it has ended by then; wait for its end."""
        begun = None
        while begun is None or time.monotonic() < begun + seconds:
            if begun is None and self.err.exists():
                begun = time.monotonic()
            if os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return self.ended()
            time.sleep(0.002)
        os.kill(self.process, number)
        return self.ended()


def _become(arguments: list[str], cwd: Path, err: Path, moment: Moment) -> NoReturn:
    code = 1
    try:
        # A shell that starts this in the background lets it ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ["FEWSTEP_CACHE"] = str(cwd / "cache")
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        os.chdir(cwd)
        sys.argv = ["fewstep", *arguments]
        events = _watch(moment)
        # Its file tells the parent that the command begins.
        os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT), 2)
        try:
            entry()
        finally:
            if moment.counted is not None:
                moment.counted.write_text(str(events()))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:  # noqa: BLE001  a child must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _watch(moment: Moment) -> Callable[[], int]:
    """Count events of the main thread; at the moment's, meet the limit or send the signal."""
    seen = 0
    if moment.size is not None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (moment.size, hard))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def event() -> None:
        nonlocal seen
        # TensorBoard's thread changes files whenever it is scheduled.
        if threading.current_thread() is not threading.main_thread():
            return
        seen += 1
        if moment.number is not None and seen == moment.event:
            os.kill(os.getpid(), moment.number)

    def audit(name: str, arguments: tuple[Any, ...]) -> None:
        if name in CHANGES or (name == "open" and arguments[2] and arguments[2] & WRITES):
            event()

    if moment.number is not None or moment.counted is not None:
        for name in PARTS:
            setattr(loop._Loop, name, _counted(getattr(loop._Loop, name), event))
        os.fsync = _counted(os.fsync, event)
        sys.addaudithook(audit)
    return lambda: seen


def _counted(function: Callable[..., Any], event: Callable[[], None]) -> Callable[..., Any]:
    def counted(*arguments: Any, **named: Any) -> Any:
        event()
        return function(*arguments, **named)

    return counted
