"""Images on their way to the network: decoding once, opening again, batches, the order."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measure import Peak, Result, Row, Setting, Table, alternate, quartiles
from networks import SUBJECTS, write_images

from fewstep.data import DataConfig, Shards, augment, examples, images, open_dataset
from fewstep.data.permutation import _epoch, indices

COUNTS, BATCH, SIDE = (500, 2_000, 8_000), 64, 16
LENGTHS = (10_000, 100_000, 1_000_000, 10_000_000)


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def decoded(folder: Path, count: int) -> Row:
    """Return the row of `count` images that are decoded into a memory map, then opened again."""
    path = write_images(folder, count, 2 * SIDE)
    config = DataConfig(name=str(path), size=SIDE, held_out=0.0)
    begun = time.process_time()
    first = seconds(lambda: open_dataset(config))
    worked = time.process_time() - begun
    images._cached.cache_clear()  # as a new process would open it
    again = seconds(lambda: open_dataset(config))
    data, peak, updates = open_dataset(config), Peak(Setting()), iter(range(10**6))

    def batch() -> None:
        index, epoch = examples(data, 0, next(updates), BATCH, part=0, parts=1)
        augment(data.batch(index)[0], 0, epoch, index, flip=True)

    batch()
    times = [seconds(batch) for _ in range(50)]
    return {
        "images": count,
        "decode once, s": first,
        "processor, s": worked,
        "images/s": count / first,
        "open again, s": again,
        f"batch of {BATCH}, ms": quartiles(times)["ms"],
        "batch peak MiB": peak.of(batch) / 2**20,
    }


def streamed(folder: Path, count: int) -> Row:
    """Return the row of `count` images that are decoded each time they are needed."""
    path = write_images(folder, count, 2 * SIDE)
    opened: list[Shards] = []
    config = DataConfig(name=str(path), size=SIDE, held_out=0.0, stream=True)
    start = seconds(lambda: opened.append(Shards(config)))
    data, updates = opened[0], iter(range(10**6))

    def batch() -> None:
        data.batch(examples(data, 0, next(updates), BATCH, part=0, parts=1)[0])

    batch()
    found = quartiles([seconds(batch) for _ in range(12)])
    return {
        "images": count, "open, s": start, f"batch of {BATCH}, ms": found["ms"],
        "images/s": 1e3 * BATCH / found["ms"],
    }  # fmt: skip


def ordered(length: int) -> Row:
    """Return the row of the order of `length` images: the first update of an epoch, another."""
    _epoch.cache_clear()
    first = seconds(lambda: indices(0, 0, BATCH, length))
    updates = iter(range(1, 50))
    next_ones = [seconds(lambda: indices(0, next(updates), BATCH, length)) for _ in range(49)]
    return {
        "images": length, "first of an epoch, ms": 1e3 * first,
        "any other, ms": quartiles(next_ones)["ms"],
        "held MiB": 8 * length / 2**20,
    }  # fmt: skip


def beside_forward(setting: Setting, folder: Path) -> Row:
    """Return the row of a batch of cifar10-small against one forward of its network."""
    path = setting.data or write_images(folder, 4_000, 2 * SIDE)
    data = open_dataset(DataConfig(name=str(path), size=SIDE, flip=True))
    subject, updates = SUBJECTS["cifar10-small"](setting), iter(range(10**6))
    t = torch.full((BATCH,), 500.0, device=setting.device)

    def batch() -> None:
        index, epoch = examples(data, 0, next(updates), BATCH, part=0, parts=1)
        augment(data.batch(index)[0], 0, epoch, index, flip=True)

    def forward() -> None:
        with torch.no_grad():
            subject.call(subject.teacher, subject.x, t, subject.cond)

    times = alternate(setting, {"batch": batch, "forward": forward}, 20)
    return times.ratio("cifar10-small: a batch / one forward of it", "batch", "forward")


def run(setting: Setting) -> Result:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["FEWSTEP_CACHE"] = str(folder / "cache")
        tables = [
            Table("Decoded once, into a memory map", [decoded(folder / "d", n) for n in COUNTS]),
            Table("Streamed", [streamed(folder / "s", n) for n in COUNTS]),
            Table("Order", [ordered(n) for n in LENGTHS]),
            Table("Beside the network", [beside_forward(setting, folder)]),
        ]
    return Result(__doc__ + ABOUT, tables)


ABOUT = """

Generated PNGs of 32x32, shrunk to 16x16. "open again" is what a second run waits for.
"""
