"""Stream a million generated images: memory along the way, and speed beside the network's.

    python benchmarks/stream.py [FOLDER] [MILLIONS]

Writes shards of small PNGs to FOLDER (a temporary one by default), reads them all in training
order, and prints the resident memory every tenth of the way; then how many times as fast the
loader and the decoded cache are as the training of the recipe `cifar10-small`.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from fewstep.data import Ahead, DataConfig, Shards, augment, examples, open_dataset
from fewstep.distill.pretrain import Pretrain
from fewstep.models import Card, Model, build_unet
from fewstep.models.clocks.native import CLOCK
from fewstep.models.families.unet_class import UNET_CLASS
from fewstep.recipes.config import load_recipe
from fewstep.train import TrainConfig, train

BATCH, FILE, GROUP, SIDE = 64, 50_000, 1_000, 16


def resident() -> float:
    """Return the resident memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def write(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(2000):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(out, "PNG")
        drawn.append(out.getvalue())
    for f in range(count // FILE):
        which = rng.integers(0, len(drawn), FILE)
        table = pa.table({"image": [drawn[i] for i in which], "label": which % 10})
        pq.write_table(table, folder / f"{f:05d}.parquet", row_group_size=GROUP)


def stream(folder: Path, count: int) -> float:
    data = Shards(DataConfig(name=str(folder), size=SIDE, held_out=0.0, stream=True))

    def batch(update: int, part: int, parts: int) -> torch.Tensor:
        index, epoch = examples(data, 0, update, BATCH, part=part, parts=parts)
        return augment(data.batch(index)[0], 0, epoch, index, flip=True)

    ahead, updates = Ahead(batch), count // BATCH
    begun, readings = time.perf_counter(), []
    for update in range(updates):
        ahead(update, 0, 1)
        if update % (updates // 10) == updates // 20:
            readings.append(resident())
            print(f"  {update * BATCH:>9,} images: {readings[-1]:.0f} MiB", flush=True)
    rate = count / (time.perf_counter() - begun)
    growth = readings[-1] - readings[1]
    print(f"  growth from the second reading to the last: {growth:+.0f} MiB; {rate:,.0f} images/s")
    return rate


def training() -> float:
    """Return the images a second that the teacher of cifar10-small learns from."""
    recipe = load_recipe("cifar10-small")
    card = Card(
        fewstep="0", family=UNET_CLASS.name, name="bench", clock=CLOCK,
        shape=(3, 16, 16),
        num_classes=10, class_names=tuple("0123456789"), null_class=10,
    )  # fmt: skip
    model = Model(build_unet(recipe.network, (3, 16, 16), 10), card)
    x, labels = torch.rand(BATCH, 3, 16, 16) * 2 - 1, torch.arange(BATCH) % 10
    times = []
    for updates in (5, 25):
        begun = time.perf_counter()
        config = TrainConfig(updates=updates, batch_size=BATCH)
        # A fresh folder each: in one that was used before, there would be nothing left to train.
        with tempfile.TemporaryDirectory() as fresh:
            train(
                model, Pretrain(model.null_cond), lambda *_: (x, labels), config, Path(fresh),
                progress=False,
            )  # fmt: skip
        times.append(time.perf_counter() - begun)
    return 20 * BATCH / (times[1] - times[0])


def cached(folder: Path) -> float:
    os.environ["FEWSTEP_CACHE"] = str(folder / "cache")
    config = DataConfig(name=str(folder / "shards" / "00000.parquet"), size=SIDE, held_out=0.0)
    data = open_dataset(config)
    rates = []
    for update in range(200):
        begun = time.perf_counter()
        index, epoch = examples(data, 0, update, BATCH, part=0, parts=1)
        augment(data.batch(index)[0], 0, epoch, index, flip=True)
        rates.append(BATCH / (time.perf_counter() - begun))
    return sorted(rates)[len(rates) // 2]


def main(folder: Path, count: int) -> None:
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    print(f"{count:,} images in row groups of {GROUP:,}", flush=True)
    write(folder / "shards", count)
    streamed, learnt, kept = stream(folder / "shards", count), training(), cached(folder)
    print(f"training of cifar10-small: {learnt:,.0f} images/s")
    print(f"streaming / training: {streamed / learnt:.1f}; decoded cache: {kept / learnt:.1f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(
            Path(sys.argv[1] if len(sys.argv) > 1 else temporary),
            round(1e6 * float(sys.argv[2])) if len(sys.argv) > 2 else 1_000_000,
        )
