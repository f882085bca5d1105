"""Run a tiny study in children that are killed with SIGKILL, and one that is not.

Usage: killed.py RECIPE FOLDER KILLS SEED. Prints one JSON line: the seconds after which each child
was killed, and at which file of the study it was. The parent only forks: a child starts at once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import diffusers
import sklearn.datasets  # noqa: F401  children must not spend their time on imports
import torch

from fewstep.recipes.config import load_recipe
from fewstep.recipes.run import Run


def study(recipe: str, out: Path) -> None:
    run = Run(load_recipe(recipe), out, "cpu", progress=False)
    run.prepare()
    run.train_teacher()
    for stage in run.plan:
        run.distill(stage)


def start(recipe: str, out: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            study(recipe, out)
            os._exit(0)
        except BaseException as error:  # noqa: BLE001  a child must not go on as the parent
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
    return child


def main() -> None:
    recipe, folder, kills, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    assert diffusers.UNet2DConditionModel is not diffusers.DDIMScheduler  # lazy until named
    begun = time.monotonic()
    _, status = os.waitpid(start(recipe, folder / "whole"), 0)
    assert status == 0, "the undisturbed run failed"
    whole = time.monotonic() - begun
    chance, log = random.Random(seed), []
    while len(log) < kills:
        child = start(recipe, folder / "killed")
        # Shorter than the whole, so that the kills fall all over it, some before any progress.
        wait = chance.uniform(0.05, 0.35) * whole
        time.sleep(wait)
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, "a resumed run failed"
            break
        made = len(list((folder / "killed").glob("*/fewstep.json")))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        log.append({"after": round(wait, 3), "models": made})
    _, status = os.waitpid(start(recipe, folder / "killed"), 0)
    assert status == 0, "the last run failed"
    sys.stdout.write(json.dumps(log) + "\n")


if __name__ == "__main__":
    main()
