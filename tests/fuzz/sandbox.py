"""Run one command in a folder of its own, and see all that it should not do.

A command may write below its --out, into fewstep's cache and into the temporary folder, and nowhere
else. It opens no socket, starts no process and unpickles nothing. What it did is seen by comparing
the folder before and after, and by audit events of Python.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import resource
import shutil
import signal
import stat
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import fewstep
from fewstep.cli import main as command_line
from fewstep.show import sheet
from fewstep.train import loop

STEPS = 2  # updates of a training that is not stopped by itself
SECONDS = 60  # of processor time, after which a command hangs
MEMORY = 3 << 30  # bytes that a command may reserve; more fails there, and not on the machine
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {
    *("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "shutil.rmtree", "shutil.move"),
}
CALLS = {
    *("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"),
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"),
    "pickle.find_class",
}
SOURCE = str(Path(fewstep.__file__).parent)


def _libraries() -> tuple[str, ...]:
    """Return where libraries keep locks, byte code and temporary files of their own."""
    home = importlib.import_module("huggingface_hub.constants").HF_HOME
    plots = importlib.import_module("matplotlib")
    code = [p for p in sys.path if p.endswith(("site-packages", "src"))]
    own = (home, plots.get_configdir(), plots.get_cachedir(), tempfile.gettempdir())
    return tuple(map(os.path.abspath, (*own, os.devnull, "/proc", *code)))


LIBRARIES = _libraries()


class Hang(BaseException):
    """A command has used all its time."""


@dataclass
class Outcome:
    """What a command did.

    Attributes:
        code: its exit code; None where it raised an exception instead.
        out, err: what it printed.
        error: the exception that it ended with, whether or not it became a line.
        seen: every thing it must not do, in words.
    """

    arguments: list[str]
    code: int | None
    out: str
    err: str
    error: BaseException | None
    seen: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        """Return what no command may do whatever it is given, in words; nothing is the best."""
        found = list(self.seen)
        lines = self.err.strip().splitlines()
        if self.code is None:
            found.append(f"ended in a traceback: {self.reason()}")
        elif "Traceback" in self.err or "unforeseen error" in self.err:
            found.append(f"an unforeseen error: {self.reason()}")
        elif self.code not in (0, 1, 2, 130):
            found.append(f"exit code {self.code}")
        elif self.code in (1, 130) and not (lines and lines[-1].startswith("fewstep: ")):
            found.append(f"the last line is no error of fewstep: {lines[-1:]}")
        if self.code and sum(line.startswith("fewstep: ") for line in lines) > 1:
            found.append("several lines of error")
        return found

    def reason(self) -> str:
        """Return the exception, and the innermost place in fewstep where it passed."""
        if self.error is None:
            return "no exception"
        frames = traceback.extract_tb(self.error.__traceback__)
        ours = [f for f in frames if f.filename.startswith(SOURCE)] or list(frames)
        where = f"{Path(ours[-1].filename).relative_to(SOURCE)}:{ours[-1].name}" if ours else "?"
        return f"{type(self.error).__name__} in {where}: {str(self.error)[:200]}"


class _Watch:
    """An audit hook that is on while a command runs; Python has no way to remove one."""

    def __init__(self) -> None:
        self.root: str | None = None  # None: nothing runs
        self.allowed: tuple[str, ...] = ()  # below the root
        self.seen: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.root is None:
            return
        if event in CALLS:
            self.seen.append(f"{event} {str(arguments)[:200]}")
            if event.startswith("socket."):
                raise OSError("no network here")
        elif event == "open" and arguments[2] and arguments[2] & WRITES:
            self._write(event, arguments[0])
        elif event in CHANGES:
            named = arguments[:2] if event in ("os.rename", "shutil.move") else arguments[:1]
            named = arguments[1:2] if event in ("os.link", "os.symlink") else named
            for path in named:
                if event != "os.mkdir" or not os.path.isdir(path):
                    self._write(event, path, arguments[-1])

    def _write(self, event: str, path: Any, folder: Any = -1) -> None:
        if isinstance(path, int) or (isinstance(folder, int) and folder >= 0 and event != "open"):
            return  # a path below an open folder: the comparison of the sandbox sees those
        real = os.path.abspath(os.fsdecode(path))
        assert self.root is not None
        here = _below(real, (self.root,))
        if here and _partial(Path(real).relative_to(self.root)):
            return  # --out before it has its name; the comparison sees whether it stays
        if not _below(real, self.allowed if here else LIBRARIES):
            self.seen.append(f"{event} {real} outside --out")


def _below(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == f or path.startswith(f + os.sep) for f in folders)


def _partial(path: Path) -> bool:
    return len(path.parts) > 1 and path.parts[1].startswith(".partial-")


WATCH = _Watch()
sys.addaudithook(WATCH)


@contextlib.contextmanager
def sandbox() -> Iterator[Path]:
    """Give an empty folder in which a case makes its files; the command runs in `work` of it."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        (folder / "work").mkdir()
        (folder / "cache").mkdir()
        yield folder / "work"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(work: Path, *arguments: object, out: str = "out") -> Outcome:
    """Run a command in the folder `work` of a sandbox; it may write below work/out."""
    given = [str(a) for a in arguments]
    before, root = _tree(work.parent), work.parent
    may = (work / out, root / "cache")
    done = Outcome(given, None, "", "", None)
    stdout, stderr = _stream("strict"), _stream("backslashreplace")
    with _patched(done, work, root / "cache"), _limits():
        WATCH.allowed, WATCH.seen, WATCH.root = tuple(map(str, may)), done.seen, str(root)
        try:
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                done.code = command_line.main(given)
        except BaseException as error:
            done.error = error
            if isinstance(error, KeyboardInterrupt):
                raise
        finally:
            WATCH.root = None
    done.out, done.err = _text(stdout), _text(stderr)
    _compare(before, _tree(root), may, done)
    _look(work / out, done)
    return done


def _stream(errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors, write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode("utf-8", "replace")


@contextlib.contextmanager
def _patched(done: Outcome, work: Path, cache: Path) -> Iterator[None]:
    real_app, real_step, real_pixels = command_line.app, loop._Loop._step, sheet.to_pixels
    steps = 0

    def app(*arguments: Any, **named: Any) -> Any:
        try:
            return real_app(*arguments, **named)
        except BaseException as error:
            done.error = error
            raise

    def step(self: loop._Loop) -> None:
        nonlocal steps
        steps += 1
        if steps > STEPS:
            signal.raise_signal(signal.SIGINT)
        real_step(self)

    def to_pixels(images: torch.Tensor) -> Any:
        if not bool(torch.isfinite(images).all()):
            done.seen.append("drew a picture of numbers that are not finite")
        return real_pixels(images)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        patch.setenv("FEWSTEP_CACHE", str(cache))
        patch.setattr(sys, "argv", ["fewstep", *done.arguments])
        patch.setattr(command_line, "app", app)
        patch.setattr(loop._Loop, "_step", step)
        patch.setattr(sheet, "to_pixels", to_pixels)
        patch.setattr(os, "fsync", lambda handle: None)  # no case loses its power
        yield


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Bound memory and processor time, which do not depend on what else the machine does."""

    def stop(number: int, frame: object) -> None:
        raise Hang(f"{SECONDS} s of processor time")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = Path("/proc/self/statm")
    used = int(size.read_text().split()[0]) * resource.getpagesize() if size.exists() else 0
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        if used:
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _tree(folder: Path) -> dict[Path, tuple[object, ...]]:
    found: dict[Path, tuple[object, ...]] = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            state = path.lstat()
            link = os.readlink(path) if stat.S_ISLNK(state.st_mode) else None
            whole = (state.st_size, state.st_mtime_ns) if stat.S_ISREG(state.st_mode) else ()
            found[path] = (state.st_mode, link, *whole)
    return found


def _compare(
    before: dict[Path, tuple[object, ...]],
    after: dict[Path, tuple[object, ...]],
    may: tuple[Path, ...],
    done: Outcome,
) -> None:
    for path in sorted({*before, *after}):
        if before.get(path) != after.get(path) and not any(path.is_relative_to(m) for m in may):
            done.seen.append(f"changed {path.name!r} outside --out")
        if path.name.startswith(".partial-") and path not in before:
            done.seen.append(f"left {path.name} behind")


def _look(out: Path, done: Outcome) -> None:
    for path in sorted(out.rglob("*.png")) if done.code == 0 else ():
        with Image.open(path) as image:
            image.load()
