"""A worker: reads lines "STEP SECONDS" and runs each step within its time.

The driver starts it early, so that imports and decoding are done when its first step begins.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarks.gpu.common import Context
from benchmarks.gpu.leg import prepare_leg, run_leg
from benchmarks.gpu.memory import run_memory
from benchmarks.gpu.sampling import run_sampling
from benchmarks.gpu.training import run_sweep, run_train

STEPS: dict[str, Callable[[Context], None]] = {
    "train": run_train,
    "leg": run_leg,
    "sampling": run_sampling,
    "memory": run_memory,
    "sweep": run_sweep,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--prepare", action="store_true", help="decode the images at once")
    for name in ("work", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("data", "features", "start"):
        parser.add_argument(f"--{name}", type=Path)
    given = vars(parser.parse_args())
    prepare = given.pop("prepare")
    context = Context(**given)
    if context.tiny:
        torch.set_num_threads(1)
    if prepare:
        prepare_leg(context)
    for line in sys.stdin:
        name, seconds = line.split()
        context.deadline = time.monotonic() + float(seconds)
        failed = ""
        try:
            STEPS[name](context)
        except Exception:  # noqa: BLE001  the driver goes on with the next step
            failed = traceback.format_exc()
            print(f"[{name}] FAILED\n{failed}", flush=True)
        context.free()
        (context.work / f"{name}.done").write_text(failed, encoding="utf-8")
        if "CUDA error" in failed:
            sys.exit(1)  # this process can use the device no more; the driver starts another


if __name__ == "__main__":
    main()
