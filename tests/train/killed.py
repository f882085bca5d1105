"""Run a tiny study in children that are killed with SIGKILL, and one that is not.

Usage: killed.py RECIPE FOLDER KILLS SEED. Prints one JSON line: how many updates and models
were kept at each kill. The parent only forks: a child starts at once.
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


def updates(out: Path) -> int:
    """Return how many updates of all stages the checkpoints hold."""
    found = out.glob("training/*/checkpoints/latest.json")
    return sum(json.loads(path.read_text())["update"] for path in found)


def main() -> None:
    recipe, folder, kills, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    assert diffusers.UNet2DConditionModel is not diffusers.DDIMScheduler  # lazy until named
    begun = time.monotonic()
    _, status = os.waitpid(start(recipe, folder / "whole"), 0)
    assert status == 0, "the undisturbed run failed"
    update = (time.monotonic() - begun) / updates(folder / "whole")
    chance, log = random.Random(seed), []
    # The moments follow the work done, not the clock: a slow machine gets as many kills as a fast
    # one. The last come early enough that the run cannot finish first.
    for target in sorted(chance.uniform(0.0, 0.85) for _ in range(kills)):
        child = start(recipe, folder / "killed")
        while updates(folder / "killed") < target * updates(folder / "whole"):
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "a resumed run ended by itself"
            time.sleep(0.002)
        time.sleep(chance.uniform(0.0, 10.0) * update)
        made = len(list((folder / "killed").glob("*/fewstep.json")))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "a resumed run ended before it was killed"
        log.append({"updates": updates(folder / "killed"), "models": made})
    _, status = os.waitpid(start(recipe, folder / "killed"), 0)
    assert status == 0, "the last run failed"
    sys.stdout.write(json.dumps(log) + "\n")


if __name__ == "__main__":
    main()
