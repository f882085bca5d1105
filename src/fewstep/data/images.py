"""One's own images: decoded once into a memory map that is found again by its content.

$FEWSTEP_CACHE or ~/.cache/fewstep/images/<key>/   images.u8  labels.i64  meta.json
                                   stamps/<files>  the key that these files had
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fewstep.atomic import atomic_folder, atomic_write
from fewstep.data.augment import uniform
from fewstep.data.config import DataConfig
from fewstep.data.dataset import check_index, check_split
from fewstep.data.source import Record, Source, decode, open_source
from fewstep.errors import DataError

FORMAT = 1


class Images:
    """A split of images on the disk; `fewstep.data.Dataset`.

    Attributes:
        source_index: place of each example among all the images used, increasing: (length,).
        skipped: number of images that were left out as bad.
    """

    def __init__(self, config: DataConfig, split: str = "train") -> None:
        """Open a split, decoding the images first where that was not done before.

        Raises DataError: nothing there, a bad image (unless skip_bad), a missing label, fewer
        than two classes, or a split without images.
        """
        check_split(split)
        cache = _cached(config)
        self.split, self.skipped = split, cache.skipped
        held_out = uniform(0, "held-out", torch.arange(len(cache.labels))) < config.held_out
        chosen = held_out if split == "held-out" else ~held_out
        self.source_index = chosen.nonzero().flatten()
        if not len(self.source_index):
            raise DataError(
                f"{config.name} has no {split} images with held_out = {config.held_out:g}."
            )
        self._images, self._labels, self._key = cache.images, cache.labels, cache.key
        self._held_out = config.held_out
        self.shape = tuple(cache.images.shape[1:])
        self.class_names = cache.class_names
        self.num_classes = len(cache.class_names)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.source_index)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return x (B, C, H, W) float32, x = p / 127.5 - 1 of a byte p, and class ids (B,)."""
        check_index(index, len(self))
        places = self.source_index[index]
        pixels = torch.from_numpy(self._images[places.numpy()])
        return pixels.float().div_(127.5).sub_(1.0), self._labels[places]

    def content_hash(self) -> str:
        """Return the sha256, in hex, of the decoded images' key, the split and how it was made."""
        return hashlib.sha256(f"{self._key}/{self.split}/{self._held_out}".encode()).hexdigest()


class _Cache(NamedTuple):
    key: str
    images: np.ndarray
    labels: Tensor
    class_names: tuple[str, ...]
    skipped: int


def cache_root() -> Path:
    """Return where decoded images are kept: $FEWSTEP_CACHE, or fewstep in the user's cache."""
    given = os.environ.get("FEWSTEP_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fewstep"


@functools.lru_cache(maxsize=4)
def _cached(config: DataConfig) -> _Cache:
    path = Path(config.name)
    if not path.exists():
        open_source(path, config.label)  # says what is wrong
    told: dict[str, int | str | None] = {
        "format": FORMAT,
        "size": config.size,
        "channels": config.channels,
    }
    told |= {"skip_bad": config.skip_bad, "files": _content(path)}
    if config.label is not None:
        told["label"] = config.label
    key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    folder = cache_root() / "images" / key
    if not (folder / "meta.json").is_file():
        _build(folder, open_source(path, config.label), config)
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    images = np.memmap(folder / "images.u8", np.uint8, "r", shape=tuple(meta["shape"]))
    labels = torch.from_numpy(np.fromfile(folder / "labels.i64", np.int64))
    if len(labels) != len(images):
        raise DataError(f"{folder} is damaged; remove it, and the images are decoded again.")
    return _Cache(key, images, labels, tuple(meta["class_names"]), int(meta["skipped"]))


def _content(path: Path) -> str:
    """Return a hash of the bytes of all files; kept under their names, sizes and times."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    stats = [(str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    seen = hashlib.sha256(json.dumps([str(path.absolute()), stats]).encode()).hexdigest()
    stamp = cache_root() / "stamps" / seen
    if stamp.is_file():
        return stamp.read_text(encoding="utf-8")
    digest = hashlib.sha256()
    for file, (name, size, _) in zip(files, stats, strict=True):
        digest.update(f"{name}\0{size}\0".encode())
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    atomic_write(stamp, digest.hexdigest().encode())
    return digest.hexdigest()


def _build(folder: Path, source: Source, config: DataConfig) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    from tqdm.auto import tqdm

    labels: list[int | str] = []
    shape: tuple[int, ...] | None = None
    skipped: list[str] = []
    with atomic_folder(folder) as partial:
        with (partial / "images.u8").open("wb") as out:
            records = tqdm(source, desc=f"decode {config.name}", unit="image", disable=None)
            for record in records:
                try:
                    label = _label(record, len(source.class_names))
                    pixels = decode(record, config.size, config.channels)
                    shape = shape or pixels.shape
                    _check_shape(record, pixels.shape, shape)
                except DataError as error:
                    if not config.skip_bad:
                        raise DataError(
                            f"{error} Mend it, or leave bad images out with "
                            "--skip-bad (data.skip_bad=true)."
                        ) from None
                    skipped.append(str(error))
                    continue
                out.write(pixels.tobytes())
                labels.append(label)
        names, ids = _classes(source, labels, config.name)
        ids.tofile(partial / "labels.i64")
        meta = {
            "shape": [len(labels), *(shape or ())],
            "class_names": names,
            "skipped": len(skipped),
            "bad": skipped[:100],
        }  # fmt: skip
        (partial / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def _label(record: Record, known: int) -> int | str:
    label = record.label
    if label is None or (isinstance(label, int) and label < 0) or label == "":
        raise DataError(f"{record.where} has no label.")
    if known and isinstance(label, int) and label >= known:
        raise DataError(f"{record.where} has label {label}; there are {known} classes.")
    return label


def _check_shape(record: Record, found: tuple[int, ...], first: tuple[int, ...]) -> None:
    if found != first:
        raise DataError(
            f"{record.where} is {found[2]}x{found[1]}; the first image is {first[2]}x{first[1]}. "
            "Give data.size to bring all to one size."
        )


def _classes(source: Source, labels: list[int | str], name: str) -> tuple[list[str], np.ndarray]:
    found = set(labels)
    if len(found) < 2:
        raise DataError(
            f"{name} has {len(labels)} usable images of {len(found)} class"
            f"{'' if len(found) == 1 else 'es'}; guidance is between classes and needs at least 2."
        )
    if all(isinstance(v, int) for v in found):
        names = list(source.class_names) or [str(k) for k in range(max(map(int, found)) + 1)]
        return names, np.array(labels, np.int64)
    names = sorted(map(str, found))
    ids = {n: i for i, n in enumerate(names)}
    return names, np.array([ids[str(v)] for v in labels], np.int64)
