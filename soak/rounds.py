"""One round: a command, a disturbance, the same command to its end, and the comparison."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soak.children import Child, Ended, Moment
from soak.commands import COMMANDS, DISK, OUT, Command, prepare, settle
from soak.compare import differences

SIGNALS = {
    "SIGKILL": signal.SIGKILL,
    "SIGTERM": signal.SIGTERM,
    "Ctrl-C": signal.SIGINT,
}
DISTURBANCES = (*SIGNALS, "disk full", "two writers")
STOPPED = 130  # exit code of a command that was asked to stop


@dataclass(frozen=True)
class Reference:
    """What undisturbed commands make.

    Attributes:
        run: folder of a finished run, for the commands that need one.
        ends: folder that each command has made, by its name.
        seconds, events: how long each took, and its number of events.
        largest, total: bytes of its largest file, and of all its files.
    """

    run: Path
    ends: dict[str, Path]
    seconds: dict[str, float]
    events: dict[str, int]
    largest: dict[str, int]
    total: dict[str, int]

    @staticmethod
    def made(home: Path) -> Reference:
        """Run every command twice; raise SystemExit where the two ends differ."""
        run = prepare(home / "start")
        reference = Reference(run, {}, {}, {}, {}, {})
        for command in COMMANDS:
            ends = [
                reference._end(command, home / f"undisturbed-{k}" / command.name) for k in (1, 2)
            ]
            different = differences(*ends)
            if different:
                raise SystemExit(
                    f"soak: two undisturbed runs of {command.name} differ: {different}"
                )
            files = [p.stat().st_size for p in ends[0].rglob("*") if p.is_file()]
            reference.ends[command.name] = ends[0]
            reference.largest[command.name] = max(files)
            reference.total[command.name] = sum(files)
        return reference

    def _end(self, command: Command, folder: Path) -> Path:
        folder.mkdir(parents=True)
        counted = folder / "events"
        done = Child(settle(command, folder, self.run), folder, Moment(counted=counted)).ended()
        if done.code:
            raise SystemExit(f"soak: the undisturbed {command.name} failed:\n{done.err}")
        self.seconds[command.name] = done.seconds
        self.events[command.name] = int(counted.read_text())
        return folder / OUT


@dataclass
class Round:
    """A round of a number. told: what was done, in words; faults: what was wrong, in words."""

    number: int
    chance: random.Random
    folder: Path
    reference: Reference
    told: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    disturbed: int = 0

    def run(self) -> dict[str, Any]:
        """Return what was done and found."""
        command, kind = self.chance.choice(COMMANDS), self.chance.choice(DISTURBANCES)
        self.command = command
        self.folder.mkdir()
        self.arguments = settle(command, self.folder, self.reference.run)
        disturb: dict[str, Callable[[], None]] = {
            "disk full": self._full,
            "two writers": self._two,
        }
        disturb.get(kind, lambda: self._signals(kind))()
        self._finish()
        return {
            "round": self.number,
            "command": command.name,
            "disturbance": kind,
            "disturbed": self.disturbed,
            "told": self.told,
            "faults": self.faults,
        }

    def _start(self, moment: Moment | None = None) -> Child:
        return Child(self.arguments, self.folder, moment)

    def _signals(self, kind: str) -> None:
        """Send the signal one to four times, at an event or at a time."""
        number = SIGNALS[kind]
        for _ in range(self.chance.randint(1, 4)):
            part = self.chance.random()
            if self.chance.random() < 0.6:
                event = 1 + int(part * self.reference.events[self.command.name])
                done = self._start(Moment(number, event)).ended()
                where = f"event {event}"
            else:
                seconds = part * self.reference.seconds[self.command.name]
                done = self._start().signal_after(seconds, number)
                where = f"{part:.0%} of the time"
            self.told.append(f"{kind} at {where} -> {done.code}")
            if self._is_end(done):
                return
            self.disturbed += 1
            clean = done.code == STOPPED and done.last.startswith("fewstep: ")
            ended = number != signal.SIGINT and done.code == -number
            if not (clean or ended) or "Traceback" in done.err:
                self._fault(f"{kind} ended it with", done)

    def _full(self) -> None:
        """Let a disk of a random size be full: a real one where one can be mounted."""
        largest = self.reference.largest[self.command.name]
        small = self.chance.randint(4096, self.reference.total[self.command.name])
        with _small_disk(self.folder / DISK, small) as mounted:
            size = None if mounted else self.chance.randint(0, largest)
            done = self._start(Moment(size=size)).ended()
        self.told.append(f"{'a small disk' if mounted else 'small files'} -> {done.code}")
        if self._is_end(done):
            return
        self.disturbed += 1
        if done.code != 1 or not done.last.startswith("fewstep: ") or "unforeseen" in done.last:
            self._fault("a full disk ended it with", done)
        if left := [p.name for p in (self.folder / DISK).rglob(".partial-*")]:
            self.faults.append(f"a full disk left {', '.join(left)}")

    def _two(self) -> None:
        """Start the command twice, the second after a random time, in the same folder."""
        first = self._start()
        seconds = self.chance.random() * self.reference.seconds[self.command.name]
        time.sleep(seconds)
        second = self._start()
        ended = [first.ended(), second.ended()]
        self.told.append(f"two writers, {seconds:.1f} s apart -> {ended[0].code}, {ended[1].code}")
        self.disturbed += 1
        for done in ended:
            refused = done.code == 1 and done.last.startswith("fewstep: ")
            if (done.code and not refused) or "unforeseen" in done.last:
                self._fault("one of two writers ended with", done)
        if all(done.code for done in ended):
            self._fault("both of two writers failed, the first with", ended[0])

    def _is_end(self, done: Ended) -> bool:
        """Whether the command has come to its end in spite of all."""
        return done.code == 0 or (self.command.once and done.code == 1 and self._is_whole())

    def _is_whole(self) -> bool:
        end = self.reference.ends[self.command.name]
        return (self.folder / OUT).is_dir() and not differences(end, self.folder / OUT)

    def _finish(self) -> None:
        done = self._start().ended()
        if not self._is_end(done):
            self._fault("the same command, run again, ended with", done)
            return
        end = self.reference.ends[self.command.name]
        self.faults += differences(end, self.folder / OUT)
        if left := [p.name for p in self.folder.rglob(".partial-*")]:
            self.faults.append(f"{', '.join(left)} was left")

    def _fault(self, what: str, done: Ended) -> None:
        shown = "\n".join(done.err.strip().splitlines()[-12:])
        self.faults.append(f"{what} {done.code}: {shown}")


@contextlib.contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[bool]:
    """Mount a disk of so many bytes at a folder, where this machine allows it; tell whether it did.

    What is on the disk is in the folder afterwards.
    """
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            kept = folder.with_name("kept")
            shutil.copytree(folder, kept, symlinks=True)
            subprocess.run(["umount", str(folder)], check=True)
            folder.rmdir()
            kept.rename(folder)
