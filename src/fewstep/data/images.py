"""One's own images: decoded once into a memory map that is found again by its content.

$FEWSTEP_CACHE or ~/.cache/fewstep/images/<key>/   images.u8  labels.i64  meta.json
                                   stamps/<files>  the key that these files had
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from fewstep.atomic import atomic_folder, atomic_write, json_sha256
from fewstep.data.augment import uniform
from fewstep.data.captions import texts_of
from fewstep.data.config import DataConfig
from fewstep.data.dataset import check_index, check_split
from fewstep.data.found import BAD, Account, Records
from fewstep.data.labels import Classes
from fewstep.data.source import Record, decode, open_source
from fewstep.errors import DataError
from fewstep.files.cache import cache_root
from fewstep.pixels import from_bytes

FORMAT = 2
FEW = 10  # bad images that an error names
MOST = 100  # bad images that are counted before decoding stops


class Images:
    """A split of images on the disk; `fewstep.data.Dataset`.

    Attributes:
        places: place of each example among all the images used, increasing: (length,).
        skipped: number of images that were left out as bad.
        class_texts: of each class id, what stands in a prompt: its name, underscores as spaces, or
            the caption as it is written.
        summary: what was seen, used and left out, in one line.
    """

    def __init__(self, config: DataConfig, split: str = "train") -> None:
        """Open a split, decoding the images first where that was not done before.

        Raises DataError: nothing there, bad images or labels (unless skip_bad), fewer than two
        classes (one will do for prompts), or a split without images.
        """
        check_split(split)
        cache = _decoded(config)
        self.split, self.skipped = split, cache.account.left_out[BAD]
        held_out = uniform(0, "held-out", torch.arange(len(cache.labels))) < config.held_out
        chosen = held_out if split == "held-out" else ~held_out
        self.places = chosen.nonzero().flatten()
        check_some(config, split, len(self.places))
        self._images, self._labels, self._key = cache.images, cache.labels, cache.key
        self._held_out = config.held_out
        self.shape = tuple(cache.images.shape[1:])
        self.class_names = cache.class_names
        self.num_classes = len(cache.class_names)
        self.class_texts = texts_of(cache.class_names, cache.account.captions)
        held = int(held_out.sum())
        account = cache.account._replace(train=len(held_out) - held, held_out=held)
        self.summary = account.line(config.name)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.places)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return x (B, C, H, W) float32, x = p / 127.5 - 1 of a byte p, and class ids (B,)."""
        check_index(index, len(self))
        places = self.places[index]
        pixels = torch.from_numpy(self._images[places.numpy()])
        return from_bytes(pixels), self._labels[places]

    def content_hash(self) -> str:
        """Return the sha256, in hex, of the decoded images' key, the split and how it was made."""
        return hashlib.sha256(f"{self._key}/{self.split}/{self._held_out}".encode()).hexdigest()


class _Cache(NamedTuple):
    key: str
    images: np.ndarray
    labels: Tensor
    class_names: tuple[str, ...]
    account: Account


def check_some(config: DataConfig, split: str, count: int) -> None:
    """Raise DataError unless a split has images."""
    if not count:
        raise DataError(
            f"{config.name} has no {split} images with held_out = {config.held_out:g}. "
            f"{'Raise' if split == 'held-out' else 'Lower'} data.held_out "
            "(for `fewstep features train`, --held-out), or give more images."
        )


def _decoded(config: DataConfig) -> _Cache:
    """Return the decoded images, as the files are now: files may change while a process runs."""
    records = open_source(Path(config.name), config)
    settings: dict[str, Any] = {
        "format": FORMAT,
        **{k: getattr(config, k) for k in ("size", "channels", "skip_bad", "background")},
        "max_pixels": config.max_pixels if config.skip_bad else None,
        "files": _content(records.files),
        "from": [records.columns, records.captions, config.cond],
    }
    key = json_sha256(settings)
    folder = cache_root() / "images" / key
    if not (folder / "meta.json").is_file():
        _cached.cache_clear()
        _build(folder, records, config)
    images, labels, names, skipped = _cached(folder)
    account = Account(
        records.unit, records.seen, len(labels), 0, 0, len(names), records.captions,
        records.columns, records.left_out + Counter({BAD: skipped}),
    )  # fmt: skip
    return _Cache(key, images, labels, names, account)


@functools.lru_cache(maxsize=4)
def _cached(folder: Path) -> tuple[np.ndarray, Tensor, tuple[str, ...], int]:
    """Return what a folder of decoded images holds: images, labels, names and how many bad ones."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        images = np.memmap(folder / "images.u8", np.uint8, "r", shape=tuple(meta["shape"]))
        labels = torch.from_numpy(np.fromfile(folder / "labels.i64", np.int64))
        names, skipped = tuple(map(str, meta["class_names"])), int(meta["skipped"])
        whole = len(labels) == len(images) and int(labels.max()) < len(names)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        whole = False
    if not whole:
        raise DataError(f"{folder} is damaged. Remove it, and the images are decoded again.")
    return images, labels, names, skipped


def _content(files: Sequence[tuple[str, Path]]) -> str:
    """Return a hash of the files' bytes; stored under their names, sizes and times."""
    digest = hashlib.sha256()
    stats = []
    try:
        for name, file in files:
            stat = file.stat()
            stats.append((name, str(file.absolute()), stat.st_size, stat.st_mtime_ns))
        seen = json_sha256(stats)
        stamp = cache_root() / "stamps" / seen
        if stamp.is_file():
            return stamp.read_text(encoding="utf-8")
        for name, file in files:
            digest.update(os.fsencode(f"{name}\0{file.stat().st_size}\0"))
            with file.open("rb") as opened:
                while block := opened.read(1 << 20):
                    digest.update(block)
    except OSError as error:
        raise DataError(
            f"{error.filename} cannot be read: {error.strerror}. Make it readable, or remove it."
        ) from None
    atomic_write(stamp, digest.hexdigest().encode())
    return digest.hexdigest()


def _build(folder: Path, records: Records, config: DataConfig) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    labels: list[int | str] = []
    shape: tuple[int, ...] | None = None
    bad: list[str] = []
    with atomic_folder(folder) as partial:
        with (partial / "images.u8").open("wb") as out:
            shown = tqdm(records, desc=f"decode {config.name}", unit="image", disable=None)
            for number, record in enumerate(shown):
                try:
                    label = records.label(record, number)
                    pixels = _pixels(record, config, shape)
                except DataError as error:
                    bad.append(str(error))
                    if len(bad) == MOST and not config.skip_bad:
                        break
                    continue
                shape = pixels.shape
                out.write(pixels.tobytes())
                labels.append(label)
        if bad and not config.skip_bad:
            raise DataError(refusal(bad))
        found = check_classes(records.classes(labels), len(labels), config, bad)
        found.ids.tofile(partial / "labels.i64")
        meta = {
            "shape": [len(labels), *(shape or ())],
            "class_names": found.names,
            "skipped": len(bad),
            "bad": bad[:MOST],
        }
        (partial / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def decode_for(record: Record, config: DataConfig) -> np.ndarray:
    """Return the image of a record (C, H, W) uint8, as a recipe wants it."""
    return decode(
        record,
        config.size,
        config.channels,
        background=config.background,
        max_pixels=config.max_pixels,
    )


def _pixels(record: Record, config: DataConfig, first: tuple[int, ...] | None) -> np.ndarray:
    pixels = decode_for(record, config)
    if first is not None and pixels.shape != first:
        raise DataError(
            f"{record.where} is {pixels.shape[2]}x{pixels.shape[1]}; the first image is "
            f"{first[2]}x{first[1]}. Give data.size to bring all to one size."
        )
    return pixels


def refusal(bad: list[str]) -> str:
    """Return one line that names the bad images, and what to do."""
    few = " ".join(bad[:FEW])
    if len(bad) > FEW:
        at_least = "at least " if len(bad) == MOST else ""
        few = f"{at_least}{len(bad)} images cannot be used. {few} (and {len(bad) - FEW} more.)"
    return (
        f"{few} Mend {'it' if len(bad) == 1 else 'them'}, or leave bad images out with "
        "data.skip_bad=true (--set data.skip_bad=true; for `fewstep features train`, --skip-bad)."
    )


def check_classes(found: Classes, count: int, config: DataConfig, bad: Sequence[str]) -> Classes:
    """Return the classes. Raises DataError where there are too few of them, or of images."""
    if not count:
        raise DataError(
            f"{config.name} has no image that can be used{f': {bad[0]}' if bad else '.'}"
        )
    if config.cond == "class" and len(found.names) < 2:
        raise DataError(
            f"{config.name} has {count} image{'' if count == 1 else 's'} of 1 class; guidance is "
            "between classes and needs two or more. Give images of other classes too; for a model "
            "of prompts, set latents.cond=prompt."
        )
    return found
