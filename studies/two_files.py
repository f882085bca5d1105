r"""Measure what the two LoRA files of a student cost beside its folder, at several ranks.

    python -m studies two_files runs/latent-small/teacher runs/latent-small/student-4 \
        train.parquet runs/features/cifar32 --out runs/two-files

The student must be one of a single feature of w (`network.w_features: one`). At each rank it is
exported as two LoRA files over its teacher (`fewstep export --to lora`), which stock diffusers
loads; "full" keeps every singular value. Paired distances are to the teacher's many steps, and to
the student's folder. Every cell is kept in OUT/evaluation, and not measured again; a copy of the
folder `evaluation` of the run that made the student saves the teacher's cells.

The table is printed, and written to OUT/two-files.md and OUT/two-files.csv.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

import fewstep
from fewstep.atomic import atomic_write, sha256
from fewstep.data import DataConfig
from fewstep.folders import load_model
from fewstep.folders.export.lora import SLIDER, STUDENT
from fewstep.folders.export.slider import strength
from fewstep.measure.cell import Cell
from fewstep.measure.evaluate import Evaluation
from fewstep.metrics import paired_rms
from fewstep.models import Model
from fewstep.models.lora import ADAPTER
from fewstep.recipes.config import load_recipe
from studies.cells import RMS
from studies.common import argument_parser, joined, markdown

FULL = "full"
MOST = 16_384  # singular values: more than a layer has
NUMBERS = ("megabytes", "left out", "fd", "to the teacher", "to the folder")


@dataclass(frozen=True)
class Line:
    """One form of the student at one w.

    Attributes:
        form: "folder", or "two files" and their rank.
        left_out: norm of what the rank leaves out, over that of the difference to the teacher.
        size: bytes on the disk: of the student's weights in its folder, or of both files.
        fd: Fréchet distance to the training images.
        to_teacher, to_folder: paired distances.
    """

    form: str
    w: float
    size: int
    left_out: float
    fd: float | None
    to_teacher: float | None
    to_folder: float

    @property
    def numbers(self) -> tuple[float | None, ...]:
        """What is measured, in the order of NUMBERS."""
        return (self.size / 1e6, self.left_out, self.fd, self.to_teacher, self.to_folder)


def main(arguments: Sequence[str]) -> None:
    """Measure every form at every w, and write the table."""
    parser = argument_parser("two_files", __doc__)
    parser.add_argument("teacher", type=Path, help="folder of the teacher")
    parser.add_argument("student", type=Path, help="folder of the student")
    parser.add_argument("images", help="the training images, a parquet file")
    parser.add_argument("features", type=Path, help="a vision model's folder, or Inception's file")
    parser.add_argument("--out", type=Path, required=True, help="where files and figures are kept")
    parser.add_argument(
        "--recipe", default="latent-small", help="whose images and prompts; default latent-small"
    )
    parser.add_argument("--ranks", nargs="+", type=rank_of, default=[4, 16, 64, FULL])
    parser.add_argument("--w", nargs="+", type=float, default=[1.0, 2.0, 4.0, 7.0])
    parser.add_argument("--samples", type=int, default=2000, help="per cell; default 2000")
    parser.add_argument("--steps", type=int, default=25, help="of the teacher; default 25")
    parser.add_argument("--size", type=int, default=32, help="of the images, in pixels; default 32")
    parser.add_argument("--batch-size", type=int, default=250, help="of sampling; default 250")
    parser.add_argument("--seed", type=int, default=0, help="of the noise; default 0")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default cpu")
    given = parser.parse_args(arguments)
    evaluation = Evaluation(
        data_of(given.recipe, given.images, given.size),
        given.out / "evaluation",
        given.samples,
        given.seed,
        given.batch_size,
        given.features,
        given.device,
        say=lambda line: print(line, flush=True),
    )
    folders = (given.teacher, given.student, given.out)
    lines = list(measure(evaluation, *folders, given.ranks, given.w, given.steps))
    table = as_markdown(lines, f"fd_{evaluation.features.name}")
    atomic_write(given.out / "two-files.csv", as_csv(lines).encode())
    atomic_write(given.out / "two-files.md", f"{table}\n".encode())
    print(table)


def data_of(recipe: str, images: str, size: int) -> DataConfig:
    """Return a recipe's images, so that cells of its run are found where they are under --out."""
    settings = (f"data.name={json.dumps(images)}", f"data.size={size}")
    return load_recipe(recipe, settings).data


def rank_of(text: str) -> int | str:
    """Return a rank from the command line: a whole number above 0, or "full"."""
    if text == FULL or (text.isdecimal() and int(text) > 0):
        return text if text == FULL else int(text)
    raise argparse.ArgumentTypeError(
        f"a rank must be a whole number above 0 or {FULL!r}, got {text!r}. Pass 64, for example"
    )


def measure(
    evaluation: Evaluation,
    teacher: Path,
    student: Path,
    out: Path,
    ranks: Sequence[int | str],
    ws: Sequence[float],
    steps: int,
) -> Iterator[Line]:
    """Yield the lines of the folder, and then of the two files at each rank.

    Args:
        evaluation: how a cell is measured.
        teacher: folder of the teacher.
        student: folder of the student.
        out: where the files are written, a folder for each rank.
        ranks: of the student's file.
        ws: guidance weights.
        steps: of the teacher, for the paired distance.
    """
    device = evaluation.device
    guided, live = fewstep.load(teacher, device), load_model(student, device)
    many = {w: evaluation.cell("teacher", guided, w=w, steps=steps) for w in ws}
    folder = {w: evaluation.cell("student", live, w=w, teacher=many[w]) for w in ws}
    size = sum(p.stat().st_size for p in _weights(student, live))
    for w, cell in folder.items():
        yield _line("folder", size, 0.0, cell, folder[w])
    for rank in ranks:
        files, number = out / f"rank-{rank}", MOST if rank == FULL else int(rank)
        fewstep.export(live, files, to="lora", base=teacher, rank=number)
        paths = [files / name for name in (STUDENT, SLIDER)]
        with safe_open(paths[0], "pt") as file:
            left_out = json.loads(file.metadata()["fewstep"])["left_out"]
        network = load_model(teacher, device).network
        for path in paths:
            network.load_lora_adapter(
                files, prefix=live.family.part, weight_name=path.name, adapter_name=path.stem
            )
        facts = {"lora": None, "weights_sha256": "".join(map(sha256, paths))}
        for w in ws:
            network.set_adapters([path.stem for path in paths], [1.0, strength(w)])
            card = live.card.model_copy(update={**facts, "w_range": (w, w)})
            name = f"two files, rank {rank}"
            cell = evaluation.cell(name, live.like(network, card), w=w, teacher=many[w])
            yield _line(name, sum(p.stat().st_size for p in paths), left_out, cell, folder[w])


def _weights(folder: Path, model: Model) -> list[Path]:
    """Return the files of a student's weights: of its network, or of its adapter kept apart."""
    parts = (model.family.part, ADAPTER)
    return [file for part in parts for file in (folder / part).glob("*.safetensors")]


def _line(form: str, size: int, left_out: float, cell: Cell, folder: Cell) -> Line:
    assert cell.w is not None
    images, theirs = cell.images, folder.images
    figures = cell.figures
    return Line(
        form, cell.w, size, left_out, figures.fd, figures.by_name[RMS], paired_rms(images, theirs)
    )


def as_csv(lines: Sequence[Line]) -> str:
    """Return the lines as CSV, one per form and w."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["form", "w", *NUMBERS])
    writer.writerows([line.form, line.w, *line.numbers] for line in lines)
    return out.getvalue()


def as_markdown(lines: Sequence[Line], fd_name: str) -> str:
    """Return a table of one row per form, with the figures of all w's in one cell."""
    forms = dict.fromkeys(line.form for line in lines)
    rows = []
    for form in forms:
        these = [line for line in lines if line.form == form]
        columns = (
            [line.fd for line in these],
            [line.to_teacher for line in these],
            [line.to_folder for line in these],
        )
        rows.append(
            [
                form,
                f"{these[0].size / 1e6:.2f}",
                f"{these[0].left_out:.3f}",
                *(" ".join("none" if x is None else f"{x:.3f}" for x in xs) for xs in columns),
            ]
        )
    ws = joined(dict.fromkeys(line.w for line in lines))
    head = ["form", "MB", "left out", f"{fd_name}, w = {ws}", "to the teacher", "to the folder"]
    return markdown(head, rows, numbers=(1, 2))
