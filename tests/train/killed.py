"""Run a tiny study in children that are killed with SIGKILL, and in one that is not.

Usage: killed.py RECIPE FOLDER KILLS SEED. Prints one JSON line: how many updates and models the
folder held after each kill, and what the child was about to do.

A child kills itself, at a moment that is counted and not timed: so many events after a given
update, where an event is a part of an update or a change on the disk. A busy machine is killed at
the same moments as a quiet one. The parent only forks, so that a child starts at once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import sklearn.datasets  # noqa: F401  children must not spend their time on imports
import torch

from fewstep.recipes.config import load_recipe
from fewstep.recipes.run import Run
from fewstep.train import loop

CHANGES = {
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
}  # audit events; and open, where it writes
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EVENTS = 20  # the latest a kill comes after its update
UPDATES = ("_step", "_part_loss", "_read", "_save")


class Moment:
    """Kill this process `after` events after an update of a model: (place in `order`, update)."""

    def __init__(self, order: list[str], at: tuple[int, int], after: int, log: Path) -> None:
        self.order, self.at, self.after, self.log = order, at, after, log
        self.reached = False

    def __repr__(self) -> str:
        model, update = self.at
        return f"{self.after} events after update {update} of {self.order[model]}"

    def watch(self) -> None:
        """Count events from now on."""
        for name in UPDATES:
            setattr(loop._Loop, name, self._counted(name, getattr(loop._Loop, name)))
        os.fsync = self._synced(os.fsync)
        sys.addaudithook(self._audit)

    def event(self, name: str) -> None:
        """Count an event, or die at it."""
        # The writer thread of TensorBoard changes files whenever it is scheduled.
        if not self.reached or threading.current_thread() is not threading.main_thread():
            return
        if self.after:
            self.after -= 1
            return
        self.reached = False  # what follows is no event
        handle = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, f"{name}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)

    def _counted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(of: loop._Loop, *arguments: Any, **named: Any) -> Any:
            here = (self.order.index(of.folder.name), of.update)
            self.reached = self.reached or here >= self.at
            self.event(f"{of.folder.name}.{name}")
            return method(of, *arguments, **named)

        return counted

    def _synced(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def fsync(handle: int) -> None:
            self.event("fsync")
            real(handle)

        return fsync

    def _audit(self, name: str, arguments: tuple[Any, ...]) -> None:
        if not self.reached:
            return
        if name in CHANGES or (name == "open" and arguments[2] and arguments[2] & WRITES):
            self.event(name)


def study(recipe: str, out: Path) -> None:
    run = Run(load_recipe(recipe), out, "cpu", progress=False)
    run.prepare()
    run.train_teacher()
    for stage in run.plan:
        run.distill(stage)


def start(recipe: str, out: Path, moment: Moment | None = None) -> int:
    """Return how a child of this process ended, as os.waitpid has it."""
    child = os.fork()
    if child == 0:
        try:
            if moment is not None:
                moment.watch()
            study(recipe, out)
            os._exit(0)
        except BaseException as error:  # noqa: BLE001  a child must not go on as the parent
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
    return os.waitpid(child, 0)[1]


def updates(out: Path) -> dict[str, int]:
    """Return how many updates of each model the checkpoints hold."""
    found = out.glob("training/*/checkpoints/latest.json")
    return {path.parts[-3]: json.loads(path.read_text())["update"] for path in found}


def moments(recipe: str, whole: dict[str, int], kills: int, seed: int, log: Path) -> list[Moment]:
    """Return where to kill, in the order of the work, early enough that the run cannot end first.

    An update has two events at least, so no kill is more than EVENTS / 2 updates late.
    """
    chance = random.Random(seed)
    order = ["teacher", *(stage.name for stage in load_recipe(recipe).distill.plan())]
    each = [(k, update) for k, name in enumerate(order) for update in range(whole[name])]
    early = each[: int(0.85 * len(each))]
    chosen = sorted(chance.choice(early) for _ in range(kills))
    return [Moment(order, at, chance.randrange(EVENTS), log) for at in chosen]


def main() -> None:
    recipe, folder, kills, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    assert diffusers.UNet2DConditionModel is not diffusers.DDIMScheduler  # lazy until named
    assert start(recipe, folder / "whole") == 0, "the undisturbed run failed"
    whole, killed, events = updates(folder / "whole"), folder / "killed", folder / "events.txt"
    log = []
    for moment in moments(recipe, whole, kills, seed, events):
        status = start(recipe, killed, moment)
        assert os.WIFSIGNALED(status), f"no kill {moment}: the run ended ({status})"
        assert os.WTERMSIG(status) == signal.SIGKILL
        made = len(list(killed.glob("*/fewstep.json")))
        at = events.read_text().splitlines()[-1]
        log.append({"updates": sum(updates(killed).values()), "models": made, "at": at})
    assert start(recipe, killed) == 0, "the last run failed"
    sys.stdout.write(json.dumps(log) + "\n")


if __name__ == "__main__":
    main()
