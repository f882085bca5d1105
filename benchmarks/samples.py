"""The memory that an evaluation takes, and how little it grows with the number of samples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import Result, Row, Setting, Table
from networks import write_images
from torch import Tensor, nn

from fewstep.core.cond import Cond
from fewstep.core.denoiser import Traits
from fewstep.data import DataConfig
from fewstep.measure.evaluate import Evaluation
from fewstep.metrics import FeatureOutput
from fewstep.models import Model
from fewstep.models.own import as_model
from fewstep.resident import resident_now, resident_peak

COUNTS, TRAIN, SIDE = (2_000, 20_000, 50_000), 500, 32


class Cheap(nn.Module):
    """The cheapest denoiser: it turns the state a little."""

    passes = 1
    traits = Traits(shape=(3, SIDE, SIDE))

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(Tensor([-0.3]))

    def forward(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        """Return v (B, 3, SIDE, SIDE)."""
        return z * self.scale


class Means:
    """The cheapest features: the means of patches."""

    name, sha256 = "means", "of no weights"
    num_classes: int | None = None

    def __call__(self, x: Tensor) -> FeatureOutput:
        """Return features (B, 48) of x (B, 3, SIDE, SIDE)."""
        return FeatureOutput(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1), None)


def model() -> Model:
    """Return the cheapest model of ten classes."""
    plain = as_model(Cheap())
    return Model(plain.network, plain.card.model_copy(update={"num_classes": 10}), plain.clock)


def worker(data: Path, count: int, folder: Path) -> Row:
    """Measure a reference cell and one that is paired with it; return what this process took."""
    config = DataConfig(name=str(data), size=SIDE, held_out=0.0)
    evaluation = Evaluation(config, folder, count, batch_size=500)
    evaluation.__dict__["features"] = Means()
    _ = evaluation.reference
    denoiser, before, begun = model(), resident_now(), time.perf_counter()
    first = evaluation.cell("teacher", denoiser, w=0.0, steps=2)
    cell = evaluation.cell("student", denoiser, w=0.0, steps=1, teacher=first)
    return {
        "samples": count,
        "peak MiB": resident_peak() / 2**20,
        "before MiB": before / 2**20,
        "images as float32, MiB": 4 * 3 * SIDE**2 * count / 2**20,
        "files MiB": sum(f.stat().st_size for f in (folder / "cells").iterdir()) / 2**20,
        "s": time.perf_counter() - begun,
        "fd": cell.figures.fd,
        "rms to teacher": cell.figures.rms_to_teacher,
    }


def run(setting: Setting) -> Result:
    del setting  # the network and the features do next to nothing
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FEWSTEP_CACHE"] = f"{folder}/cache"
        data = write_images(Path(folder), TRAIN, SIDE)
        for count in COUNTS:
            asked = [str(data), str(count), f"{folder}/{count}"]
            done = subprocess.run(
                [sys.executable, __file__, *asked], stdout=subprocess.PIPE, text=True, check=True
            )
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    return Result(__doc__ + ABOUT, [Table("Two cells, the second paired with the first", rows)])


ABOUT = """

Images of 32x32 by a network that does next to nothing, and features of 48 dimensions, so that what
is seen is the measuring; each row is a process of its own. "peak" is the most memory that the
process held, "before" what it held when it began to draw, with its libraries and the training
images. All figures of a cell are measured, of every sample.
"""

if __name__ == "__main__":
    print(json.dumps(worker(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))))
