"""One's own images: decoded once into a memory map that is found again by its content.

$FEWSTEP_CACHE or ~/.cache/fewstep/images/<key>/   images.u8  labels.i64  meta.json
                                   stamps/<files>  the key that these files had

With buckets there are images.u8, images-1.u8, ... and buckets.i64, the bucket of each image.
"""

from __future__ import annotations

import contextlib
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
from fewstep.data.buckets import Buckets
from fewstep.data.captions import texts_of
from fewstep.data.config import DataConfig
from fewstep.data.dataset import Dataset, check_index, check_split
from fewstep.data.found import BAD, Account, Records
from fewstep.data.labels import Classes
from fewstep.data.source import Record, decode, open_source
from fewstep.errors import DataError, EmptySplitError
from fewstep.files.cache import cache_root
from fewstep.pixels import from_bytes

FORMAT = 2
FEW = 3  # bad images that an error names
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

    def __init__(self, config: DataConfig, split: str = "train", bucket: int | None = None) -> None:
        """Open a split, decoding the images first where that was not done before.

        bucket: number of the one of `config.buckets` whose images to open, where there are any.

        Raises DataError: nothing there, bad images or labels (unless skip_bad), fewer than two
        classes (one will do for prompts), or a split without images.
        """
        check_split(split)
        cache = _decoded(config)
        self.split, self.skipped = split, cache.account.left_out[BAD]
        held_out = uniform(0, "held-out", torch.arange(len(cache.labels))) < config.held_out
        chosen = held_out if split == "held-out" else ~held_out
        here = torch.full_like(chosen, True) if bucket is None else cache.buckets == bucket
        self.places = (chosen & here).nonzero().flatten()
        if bucket is None:
            check_some(config, split, len(self.places))
        self._images, self._labels, self._key = cache.images[bucket or 0], cache.labels, cache.key
        self._rows = here.cumsum(0) - 1  # of each place, in the images of this bucket
        self._held_out, self._bucket = config.held_out, bucket
        self.shape = tuple(self._images.shape[1:])
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
        pixels = torch.from_numpy(self._images[self._rows[places].numpy()])
        return from_bytes(pixels), self._labels[places]

    def content_hash(self) -> str:
        """Return the sha256, in hex, of the decoded images' key, the split and how it was made."""
        bucket = "" if self._bucket is None else f"/{self._bucket}"
        how = f"{self._key}/{self.split}/{self._held_out}{bucket}"
        return hashlib.sha256(how.encode()).hexdigest()


def open_images(config: DataConfig, split: str = "train") -> Dataset:
    """Return a split of one's own images, in buckets where the config has any.

    Raises DataError as `Images` does.
    """
    if not config.buckets:
        return Images(config, split)
    assert config.size is not None
    parts = [Images(config, split, k) for k in range(len(config.buckets))]
    some = [part for part in parts if len(part)]
    check_some(config, split, len(some))
    return Buckets(some, (config.channels, config.size, config.size))


class _Cache(NamedTuple):
    key: str
    images: tuple[np.ndarray, ...]  # of each bucket, or all
    buckets: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    account: Account


def check_some(config: DataConfig, split: str, count: int) -> None:
    """Raise EmptySplitError unless a split has images."""
    if not count:
        raise EmptySplitError(
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
        **({"buckets": config.buckets} if config.buckets else {}),
    }
    key = json_sha256(settings)
    folder = cache_root() / "images" / key
    if not (folder / "meta.json").is_file():
        _cached.cache_clear()
        _build(folder, records, config)
    images, buckets, labels, names, skipped = _cached(folder)
    account = Account(
        records.unit, records.seen, len(labels), 0, 0, len(names), records.captions,
        records.columns, records.left_out + Counter({BAD: skipped}),
    )  # fmt: skip
    return _Cache(key, images, buckets, labels, names, account)


@functools.lru_cache(maxsize=4)
def _cached(
    folder: Path,
) -> tuple[tuple[np.ndarray, ...], Tensor, Tensor, tuple[str, ...], int]:
    """Return what a folder of decoded images holds.

    These are the images of each bucket, the bucket and the label of each place, the classes' names
    and the number of bad images.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        shapes = map(tuple, meta["shapes"] if "shapes" in meta else [meta["shape"]])
        images = tuple(_mapped(folder / _file(k), shape) for k, shape in enumerate(shapes))
        labels = torch.from_numpy(np.fromfile(folder / "labels.i64", np.int64))
        buckets = torch.zeros_like(labels)
        if len(images) > 1:
            buckets = torch.from_numpy(np.fromfile(folder / "buckets.i64", np.int64))
        names, skipped = tuple(map(str, meta["class_names"])), int(meta["skipped"])
        counts = [int((buckets == k).sum()) for k in range(len(images))]
        whole = (
            counts == [len(part) for part in images]
            and len(buckets) == len(labels)
            and int(labels.max()) < len(names)
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        whole = False
    if not whole:
        raise DataError(f"{folder} is damaged. Remove it, and the images are decoded again.")
    return images, buckets, labels, names, skipped


def _file(bucket: int) -> str:
    return f"images-{bucket}.u8" if bucket else "images.u8"


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    if not shape[0]:  # an empty file cannot be mapped
        return np.empty(shape, np.uint8)
    return np.memmap(path, np.uint8, "r", shape=shape)


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
    into: list[int] = []
    shapes: list[tuple[int, ...] | None] = [(config.channels, *b) for b in config.buckets] or [None]
    bad: list[str] = []
    with atomic_folder(folder) as partial:
        with contextlib.ExitStack() as stack:
            outs = [
                stack.enter_context((partial / _file(k)).open("wb")) for k in range(len(shapes))
            ]
            shown = tqdm(records, desc=f"decode {config.name}", unit="image", disable=None)
            for number, record in enumerate(shown):
                try:
                    label = records.label(record, number)
                    pixels = _pixels(record, config, shapes[0])
                except DataError as error:
                    bad.append(str(error))
                    if len(bad) == MOST and not config.skip_bad:
                        break
                    continue
                if shapes[0] is None:
                    shapes[0] = pixels.shape
                into.append(shapes.index(pixels.shape))
                outs[into[-1]].write(pixels.tobytes())
                labels.append(label)
        if bad and not config.skip_bad:
            raise DataError(refusal(bad))
        found = check_classes(records.classes(labels), len(labels), config, bad)
        found.ids.tofile(partial / "labels.i64")
        counted = [[into.count(k), *(shape or ())] for k, shape in enumerate(shapes)]
        if config.buckets:
            np.array(into, np.int64).tofile(partial / "buckets.i64")
        meta = {
            **({"shapes": counted} if config.buckets else {"shape": counted[0]}),
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
        buckets=config.buckets,
    )


def _pixels(record: Record, config: DataConfig, first: tuple[int, ...] | None) -> np.ndarray:
    pixels = decode_for(record, config)
    if first is not None and not config.buckets and pixels.shape != first:
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
