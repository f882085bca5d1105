"""Draw the picture of a run: the same noise through the teacher and its students.

python docs/results/picture.py RUN OUT [W] [STEPS]

    python docs/results/picture.py runs/demo docs/images/digits.png
    python docs/results/picture.py runs/cifar10-small docs/images/cifar10-small.png 1 64
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import torch

import fewstep
from fewstep.recipes.sheet import contact_sheet

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROWS = [
    ("teacher", 4, "teacher, 4 DDIM steps: 8 evaluations"),
    ("student-4", 4, "student: 4 evaluations"),
    ("teacher", 2, "teacher, 2 DDIM steps: 4 evaluations"),
    ("student-2", 2, "student: 2 evaluations"),
    ("teacher", 1, "teacher, 1 DDIM step: 2 evaluations"),
    ("student-1", 1, "student: 1 evaluation"),
]


def main(run: Path, out: Path, w: float = 4.0, many: int = 256) -> None:
    cond = torch.arange(20) % 10
    rows = [("teacher", many, f"teacher, {many} steps: {2 * many} evaluations"), *ROWS]
    figure, axes = plt.subplots(len(rows), 1, figsize=(9, 2.3))
    for axis, (name, steps, label) in zip(axes, rows, strict=True):
        images = fewstep.sample(fewstep.load(run / name), cond=cond, w=w, steps=steps, seed=0)
        sheet = contact_sheet(images, len(images), scale=4)
        axis.imshow(sheet, cmap="gray", interpolation="nearest")
        axis.axis("off")
        axis.text(-0.01, 0.5, label, ha="right", va="center", fontsize=9, transform=axis.transAxes)
    figure.subplots_adjust(left=0.27, right=1, top=0.99, bottom=0.01, hspace=0.08)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(float, sys.argv[3:4]), *map(int, sys.argv[4:5]))
