"""The training images of an evaluation as the metrics see them: made once, kept in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fewstep.atomic import atomic_write
from fewstep.data import Dataset
from fewstep.measure.conditions import evenly
from fewstep.measure.database import key_of
from fewstep.measure.room import fits
from fewstep.metrics import Features, Moments, Reference

MOST = 50_000  # training images that are compared with
SEEN = {"mean", "cov", "count", "features"}


def reference_of(
    dataset: Dataset, images: Callable[[], Tensor], features: Features, folder: Path
) -> Reference:
    """Return the reference of a data set under the features, from the folder where it is kept.

    images: those of `everything`; asked for only where they fit in memory.
    """
    count = min(len(dataset), MOST)
    held = images() if fits(count, dataset.shape) else None
    key = key_of({"data": dataset.content_hash(), "features": features.sha256})
    path = folder / f"{key[:32]}.safetensors"
    found = tensors_in(path)
    if found.keys() >= SEEN:
        known = Moments(found["mean"], found["cov"], int(found["count"]))
        return Reference(features.name, known, held, found["features"])
    if held is not None:
        made = Reference.build(held, features)
    else:
        made = Reference.of_batches(_batches(dataset), features, None)
    if made.moments is not None:
        kept = {"mean": made.moments.mean, "cov": made.moments.cov, "features": made.features}
        kept["count"] = torch.tensor(made.moments.count)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, save({k: v.contiguous() for k, v in kept.items()}))
    return made


def everything(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Return the images and classes of a data set: all, or 50,000 evenly chosen."""
    index = evenly(min(len(dataset), MOST), len(dataset))
    parts = [dataset.batch(part) for part in index.split(1000)]
    labels = [y for _, y in parts if isinstance(y, Tensor)]
    return torch.cat([x for x, _ in parts]), torch.cat(labels)


def tensors_in(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file; none where there is no such file, or it is damaged."""
    try:
        return load_file(path) if path.is_file() else {}
    except (SafetensorError, OSError):
        return {}


def _batches(dataset: Dataset) -> Iterator[Tensor]:
    for part in evenly(min(len(dataset), MOST), len(dataset)).split(500):
        yield dataset.batch(part)[0]
