"""Write a sheet's labels, which it carries with it, beside its rows.

python docs/results/labelled.py RUN/transfer-w2.png docs/images/transfer-digits.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def main(sheet: Path, out: Path) -> None:
    with Image.open(sheet) as image:
        labels = json.loads(image.info["fewstep"])["rows"]
        size, pixels = image.size, image.convert("RGB")
    figure = plt.figure(figsize=(7.2, 5.4 * size[1] / size[0]))
    axis = figure.add_axes((0.25, 0, 0.75, 1))
    axis.imshow(pixels, interpolation="nearest")
    axis.axis("off")
    for k, label in enumerate(labels):
        middle = (k + 0.5) * size[1] / len(labels)
        axis.text(-0.02 * size[0], middle, label, ha="right", va="center", fontsize=9)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
