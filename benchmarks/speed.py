"""Seconds an image of a run's students beside its teacher's many guided steps.

    python benchmarks/speed.py RUN [STEPS] [IMAGES]

The teacher and each student draw the same images by turns, three times; medians and their ratio.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch

import fewstep


def main(run: Path, steps: int = 1024, images: int = 50) -> None:
    names = ["teacher"] + [f"student-{n}" for n in (8, 4, 2, 1)]
    models = {n: fewstep.load(run / n) for n in names if (run / n).is_dir()}
    cond = torch.arange(images) % 10
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(3):
        for name, model in models.items():
            begun = time.perf_counter()
            fewstep.sample(model, cond, w=1.0, steps=steps if name == "teacher" else None)
            times[name].append((time.perf_counter() - begun) / images)
    middle = {name: statistics.median(t) for name, t in times.items()}
    print(f"{images} images at once, {torch.get_num_threads()} threads")
    for name, seconds in middle.items():
        said = f"teacher, {steps} guided steps" if name == "teacher" else name
        print(f"{said:<28} {1e3 * seconds:9.2f} ms an image {middle['teacher'] / seconds:8.0f}x")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:4]))
