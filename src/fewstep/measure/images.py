"""The images of a cell in a file: the first ones as they are, and all of a reference as bytes.

`images`, float32, are at most the first 2,000. A cell that others are paired with needs all of its
images: where there are more, they are in `bytes` too, uint8. Files are safetensors, written and
read in pieces, so that their size is no matter of memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fewstep.atomic import atomic_file
from fewstep.pixels import from_bytes, to_bytes

IMAGES, BYTES = "images", "bytes"
KEPT = 2_000  # images of a cell that are kept as they are


@contextmanager
def image_writer(
    path: Path, count: int, shape: tuple[int, ...], whole: bool = False
) -> Iterator[ImageWriter]:
    """Give a writer of `count` images; the file is there, complete, at the end of the block.

    shape: of one image. whole: keep all of them, and not the first alone.
    """
    with atomic_file(path) as file:
        yield ImageWriter(file, count, shape, whole)


class ImageWriter:
    """Writes the images of a cell, batch by batch and in order."""

    def __init__(self, file: BinaryIO, count: int, shape: tuple[int, ...], whole: bool) -> None:
        """Write the header."""
        self._file, self._row = file, math.prod(shape)
        self._first = min(count, KEPT)
        first = 4 * self._first * self._row
        header = {IMAGES: _entry("F32", self._first, shape, 0, first)}
        self._whole = whole and count > KEPT
        if self._whole:
            header[BYTES] = _entry("U8", count, shape, first, first + count * self._row)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        self._begin, self._bytes = file.tell(), file.tell() + first
        self._seen = 0

    def add(self, images: Tensor) -> None:
        """Write the next images (B, *D)."""
        first = images[: max(0, self._first - self._seen)].float().contiguous()
        if len(first):
            self._put(self._begin + 4 * self._seen * self._row, first)
        if self._whole:
            self._put(self._bytes + self._seen * self._row, to_bytes(images).contiguous())
        self._seen += len(images)

    def _put(self, place: int, values: Tensor) -> None:
        self._file.seek(place)
        self._file.write(values.flatten().view(torch.uint8).numpy().data)


def _entry(
    dtype: str, count: int, shape: tuple[int, ...], first: int, last: int
) -> dict[str, object]:
    return {"dtype": dtype, "shape": [count, *shape], "data_offsets": [first, last]}


@dataclass(frozen=True)
class ImageFile:
    """The images in a file."""

    path: Path

    @property
    def is_whole(self) -> bool:
        """Whether there is such a file, complete."""
        return bool(self._counts())

    @property
    def count(self) -> int:
        """How many images there are, in whichever form; 0 where there is no such file."""
        return max(self._counts().values(), default=0)

    def first(self) -> Tensor:
        """Return the first images, as they were drawn, (B, *D) float32; at most 2,000."""
        return self._read(IMAGES, 0, KEPT)

    def part(self, first: int, last: int) -> Tensor:
        """Return the images numbered first to last - 1, (B, *D) float32."""
        found = self._read(BYTES if self._are_bytes else IMAGES, first, last)
        return from_bytes(found) if self._are_bytes else found

    def alike(self, images: Tensor) -> Tensor:
        """Return images as this file would keep them: rounded to bytes where it keeps bytes."""
        return from_bytes(to_bytes(images)) if self._are_bytes else images

    @property
    def _are_bytes(self) -> bool:
        return BYTES in self._counts()

    def _counts(self) -> dict[str, int]:
        try:
            with safe_open(self.path, "pt") as file:
                return {key: file.get_slice(key).get_shape()[0] for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return {}

    def _read(self, name: str, first: int, last: int) -> Tensor:
        # Opened each time: a file that stays mapped would count as memory, page by page.
        with safe_open(self.path, "pt") as file:
            found: Tensor = file.get_slice(name)[first:last]
        return found
