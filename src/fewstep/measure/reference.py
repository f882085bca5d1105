"""The training images of an evaluation as the metrics see them: made once, kept in a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fewstep.atomic import atomic_write
from fewstep.data import Dataset
from fewstep.measure.conditions import evenly
from fewstep.measure.database import key_of
from fewstep.measure.dealing import dealt
from fewstep.measure.room import fits
from fewstep.metrics import Features, Moments, Reference, extract
from fewstep.train import agreed, is_main

MOST = 50_000  # training images that are compared with
AT_ONCE = 500
SEEN = {"mean", "cov", "count", "features"}


def reference_of(
    splits: Sequence[Dataset],
    images: Callable[[], Tensor],
    features: Features,
    folder: Path,
    *,
    every: bool = False,
) -> Reference:
    """Return the reference of some images under the features, from the folder where it is kept.

    All processes must call this and share the work; only the main one gets all of the reference.

    splits: of a data set. images: those of `everything` of the first split; asked for only where
    they fit in memory. every: look at all images of all splits, and not at 50,000 of the first.
    """
    first = splits[0]
    chosen = splits if every else splits[:1]
    most = None if every else MOST
    asked: dict[str, Any] = {"data": first.content_hash(), "features": features.sha256}
    if every:
        asked["every"] = [split.content_hash() for split in splits]
    path = folder / f"{key_of(asked)[:32]}.safetensors"
    found = tensors_in(path) if is_main() else {}
    held = None
    if is_main() and fits(min(len(first), MOST), first.shape):
        held = images()
    if agreed(found.keys() >= SEEN):
        known = Moments(found["mean"], found["cov"], int(found["count"])) if found else None
        return Reference(features.name, known, held, found.get("features", torch.empty(0)))
    places = [(split, k) for split in chosen for k in _places(split, most).split(AT_ONCE)]
    count = sum(len(k) for _, k in places)
    turns = dealt(len(places), 1, lambda part: _seen(*places[part.start], features))
    if not is_main():
        for _ in turns:
            pass
        return Reference(features.name, None, None, torch.empty(0))
    made = Reference.of_features(
        features.name, count, (seen for turn in turns for _, seen in turn), held
    )
    if made.moments is not None:
        kept = {"mean": made.moments.mean, "cov": made.moments.cov, "features": made.features}
        kept["count"] = torch.tensor(made.moments.count)
        atomic_write(path, save({k: v.contiguous() for k, v in kept.items()}))
    return made


def _places(dataset: Dataset, most: int | None) -> Tensor:
    return evenly(min(len(dataset), most or len(dataset)), len(dataset))


def _seen(dataset: Dataset, index: Tensor, features: Features) -> Tensor:
    return extract(features, dataset.batch(index)[0]).features


def everything(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Return the images and classes of a data set: all, or 50,000 evenly chosen."""
    index = _places(dataset, MOST)
    parts = [dataset.batch(part) for part in index.split(1000)]
    labels = [y for _, y in parts if isinstance(y, Tensor)]
    return torch.cat([x for x, _ in parts]), torch.cat(labels)


def tensors_in(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file; none where there is no such file, or it is damaged."""
    try:
        return load_file(path) if path.is_file() else {}
    except (SafetensorError, OSError):
        return {}
