r"""Draw the picture of a run, or write the labels of a contact sheet beside its rows.

    python -m studies picture run runs/digits docs/images/digits.png
    python -m studies picture run runs/cifar10-small docs/images/cifar10-small.png --w 1 --steps 64
    python -m studies picture sheet runs/roundtrip-digits/transfer-w2.png \
        docs/images/transfer-digits.png

    python -m studies picture rows docs/images/cifar10-h100.png docs/images/guidance.png --of 12 \
        --row 1 "w = 0: teacher, 128 evaluations" --row 2 "w = 0: student, 4 evaluations"

`run` draws the same noise through the teacher and its students of 4, 2 and 1 steps. `sheet` takes a
PNG of fewstep, which carries the labels of its rows. `rows` takes some rows of a picture.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image

import fewstep
from fewstep.show.sheet import contact_sheet
from studies.common import StudyError, argument_parser

DPI = 110
ROWS = (
    ("teacher", 4, "teacher, 4 DDIM steps: 8 evaluations"),
    ("student-4", 4, "student: 4 evaluations"),
    ("teacher", 2, "teacher, 2 DDIM steps: 4 evaluations"),
    ("student-2", 2, "student: 2 evaluations"),
    ("teacher", 1, "teacher, 1 DDIM step: 2 evaluations"),
    ("student-1", 1, "student: 1 evaluation"),
)


def main(arguments: Sequence[str]) -> None:
    """Draw one picture."""
    parser = argument_parser("picture", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="the same noise through the models of a run")
    running.add_argument("run", type=Path, help="folder of a run with students of 4, 2 and 1 steps")
    running.add_argument("out", type=Path, help="the PNG to write")
    running.add_argument("--w", type=float, default=4.0, help="guidance weight; default 4")
    running.add_argument("--steps", type=int, default=256, help="of the teacher; default 256")
    labelling = commands.add_parser("sheet", help="the labels of a contact sheet beside its rows")
    labelling.add_argument("sheet", type=Path, help="a PNG that fewstep wrote")
    labelling.add_argument("out", type=Path, help="the PNG to write")
    choosing = commands.add_parser("rows", help="some rows of a picture, with labels beside them")
    choosing.add_argument("sheet", type=Path, help="a picture of rows of equal height")
    choosing.add_argument("out", type=Path, help="the PNG to write")
    choosing.add_argument("--of", type=int, required=True, help="number of its rows")
    choosing.add_argument(
        "--row", nargs=2, action="append", required=True, metavar=("NUMBER", "LABEL"),
        help="a row, counted from 1, and its label; may be repeated",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    if given.command == "run":
        draw_run(given.run, given.out, given.w, given.steps)
    elif given.command == "rows":
        rows = [(int(number), label) for number, label in given.row]
        choose_rows(given.sheet, given.out, given.of, rows)
    else:
        label_sheet(given.sheet, given.out)


def draw_run(run: Path, out: Path, w: float, steps: int) -> None:
    """Draw 20 images of each model from the same noise, one row per model."""
    cond = torch.arange(20) % 10
    rows = [("teacher", steps, f"teacher, {steps} steps: {2 * steps} evaluations"), *ROWS]
    # 2.3 x 110 is just below 253 in floats, and matplotlib before 3.11.1 cuts it to 252 pixels.
    figure = Figure(figsize=(9, 2.301))
    for axes, (name, count, label) in zip(figure.subplots(len(rows), 1), rows, strict=True):
        images = fewstep.sample(fewstep.load(run / name), cond=cond, w=w, steps=count, seed=0)
        sheet = contact_sheet(images, len(images), scale=4)
        axes.imshow(sheet, cmap="gray", interpolation="nearest")
        axes.axis("off")
        axes.text(-0.01, 0.5, label, ha="right", va="center", fontsize=9, transform=axes.transAxes)
    figure.subplots_adjust(left=0.27, right=1, top=0.99, bottom=0.01, hspace=0.08)
    figure.savefig(out, dpi=DPI)


def label_sheet(sheet: Path, out: Path) -> None:
    """Write the labels that a sheet carries beside its rows.

    Raises StudyError if the image carries none.
    """
    with Image.open(sheet) as image:
        labels = json.loads(image.info.get("fewstep", "{}")).get("rows")
        pixels = image.convert("RGB")
    if not labels:
        raise StudyError(
            f"a sheet must carry the labels of its rows; {sheet} has none. Pass a PNG as `fewstep "
            "report` or `fewstep roundtrip` wrote it: other programs may drop its text."
        )
    _labelled(pixels, labels, out)


def choose_rows(sheet: Path, out: Path, total: int, rows: Sequence[tuple[int, str]]) -> None:
    """Write some of the `total` rows of a picture, counted from 1, with labels beside them.

    Raises StudyError for a row that the picture does not have.
    """
    with Image.open(sheet) as image:
        pixels = image.convert("RGB")
    wrong = [number for number, _ in rows if not 1 <= number <= total]
    if wrong:
        raise StudyError(f"--row must be from 1 to {total}, got {wrong[0]}. Choose another row.")
    width, height = pixels.size
    chosen = Image.new("RGB", (width, round(len(rows) * height / total)))
    for k, (number, _) in enumerate(rows):
        top, bottom = (round(n * height / total) for n in (number - 1, number))
        chosen.paste(pixels.crop((0, top, width, bottom)), (0, round(k * height / total)))
    _labelled(chosen, [label for _, label in rows], out)


def _labelled(pixels: Image.Image, labels: Sequence[str], out: Path) -> None:
    width, height = pixels.size
    figure = Figure(figsize=(7.2, 5.4 * height / width))
    axes = figure.add_axes((0.25, 0, 0.75, 1))
    axes.imshow(pixels, interpolation="nearest")
    axes.axis("off")
    for k, label in enumerate(labels):
        middle = (k + 0.5) * height / len(labels)
        axes.text(-0.02 * width, middle, label, ha="right", va="center", fontsize=9)
    figure.savefig(out, dpi=DPI)
