"""The images that `pack_data.py` packed, as a data set of fewstep: decoded once, in memory."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.data.augment import uniform
from fewstep.data.dataset import check_index, check_split
from fewstep.data.source import Record, decode
from fewstep.pixels import from_bytes

HELD_OUT = 0.05


class Packed:
    """A split of packed images; `fewstep.data.Dataset`.

    The held-out images are those that `fewstep.data.Images` holds out of the same file.
    """

    skipped = 0

    def __init__(self, path: Path, split: str = "train", *, held_out: float = HELD_OUT) -> None:
        """Decode the images. Raises DataError for a damaged image."""
        check_split(split)
        images, labels, names, self._key = _decoded(path)
        out = uniform(0, "held-out", torch.arange(len(labels))) < held_out
        chosen = (out if split == "held-out" else ~out).nonzero().flatten()
        self._images, self._labels = images[chosen], labels[chosen]
        self.split, self.class_names, self.num_classes = split, names, len(names)
        self.shape = tuple(images.shape[1:])
        self.class_texts = names
        self.summary = f"{path.name}: {len(self._labels)} images of {len(names)} classes"

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._labels)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return x (B, C, H, W) float32 in [-1, 1] and class ids (B,)."""
        check_index(index, len(self))
        return from_bytes(self._images[index]), self._labels[index]

    def content_hash(self) -> str:
        """Return the sha256, in hex, of the packed file and the split."""
        return hashlib.sha256(f"{self._key}/{self.split}".encode()).hexdigest()


_cache: dict[Path, tuple[Tensor, Tensor, tuple[str, ...], str]] = {}


def _decoded(path: Path) -> tuple[Tensor, Tensor, tuple[str, ...], str]:
    path = path.resolve()
    if path not in _cache:
        key = hashlib.sha256(path.read_bytes()).hexdigest()
        with np.load(path) as held:
            data, ends, labels = held["data"], held["ends"], held["labels"]
            names = tuple(str(n) for n in held["class_names"])
        starts = np.concatenate([[0], ends[:-1]])
        files = [data[a:b].tobytes() for a, b in zip(starts, ends, strict=True)]
        pixels = [decode(Record(f"image {k}", f, None), None, 3) for k, f in enumerate(files)]
        images = torch.from_numpy(np.stack(pixels))
        _cache[path] = images, torch.from_numpy(labels.astype(np.int64)), names, key
    return _cache[path]
