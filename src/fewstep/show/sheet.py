"""Contact sheets: images side by side in a PNG file that carries its settings."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from fewstep.atomic import atomic_write
from fewstep.core.finite import check_finite
from fewstep.errors import RangeError
from fewstep.pixels import to_bytes

GAP = 2  # pixels between images, at the final scale
PAPER = 255
MOST_PIXELS = 178_956_970  # Pillow refuses to open a larger image


def to_pixels(images: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return images (B, C, H, W) in [-1, 1], C 1 or 3, as bytes (B, H, W) or (B, H, W, 3).

    Values outside [-1, 1] are clipped. Raises NonFiniteError for NaN and infinity.
    """
    check_finite(images, "a picture")
    array = to_bytes(images).permute(0, 2, 3, 1)
    pixels: np.ndarray[Any, np.dtype[np.uint8]] = array.cpu().numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def sheet_size(count: int, columns: int, shape: Sequence[int], scale: int = 1) -> tuple[int, int]:
    """Return the width and height in pixels of a sheet of images of shape (C, H, W)."""
    rows = -(-count // columns)
    height, width = (n * scale + GAP for n in shape[-2:])
    return columns * width - GAP, rows * height - GAP


def check_sheet(count: int, columns: int, shape: Sequence[int], scale: int = 1) -> None:
    """Raise RangeError where a sheet of images of shape (C, H, W) would be too large to open."""
    width, height = sheet_size(count, columns, shape, scale)
    if width * height > MOST_PIXELS:
        raise RangeError(
            f"a sheet must have at most {MOST_PIXELS:,} pixels, the most that Pillow opens, got "
            f"{width:,} x {height:,} for {count:,} images enlarged by {scale}. Use a smaller "
            "--scale or fewer images."
        )


def most_shown(count: int, columns: int, shape: Sequence[int], scale: int, rows: int = 1) -> int:
    """Return how many of `count` images a sheet of `rows_of` so many rows can show."""
    width, height = sheet_size(columns * rows, columns, shape, scale)
    groups = MOST_PIXELS // ((width + GAP) * (height + GAP))
    return min(count, columns * groups)


def contact_sheet(images: Tensor, columns: int, scale: int = 1) -> Image.Image:
    """Return images (B, C, H, W) in [-1, 1] in rows of `columns`, each pixel enlarged by `scale`.

    Raises RangeError as `check_sheet` does, and NonFiniteError for NaN and infinity.
    """
    check_sheet(len(images), columns, images.shape[1:], scale)
    pixels = to_pixels(images)
    width, height = sheet_size(len(pixels), columns, images.shape[1:], scale)
    sheet = np.full((height, width, *pixels.shape[3:]), PAPER, dtype=np.uint8)
    for k, small in enumerate(pixels):
        image = small.repeat(scale, axis=0).repeat(scale, axis=1)
        top, left = ((n * (m + GAP)) for n, m in zip(divmod(k, columns), image.shape, strict=False))
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return Image.fromarray(sheet)


def png(image: Image.Image, settings: dict[str, Any] | None = None) -> bytes:
    """Return the image as PNG bytes; settings go in as JSON under the key "fewstep"."""
    info = PngInfo()
    if settings is not None:
        info.add_text("fewstep", json.dumps(settings))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def save_sheet(image: Image.Image, path: Path, settings: dict[str, Any]) -> None:
    """Write the image with its settings; the file appears whole or not at all."""
    atomic_write(path, png(image, settings))


def rows_of(rows: Sequence[Tensor], columns: int, scale: int = 1) -> Image.Image:
    """Return rows (n, C, H, W) of images, one above the other, with matching images aligned.

    Rows longer than `columns` continue below in a new group; the last group is padded with white.
    """
    count = len(rows[0])
    columns = min(columns, count)
    parts = []
    for first in range(0, count, columns):
        for row in rows:
            part = row[first : first + columns]
            blank = part.new_ones((columns - len(part), *part.shape[1:]))
            parts += [part, blank]
    return contact_sheet(torch.cat(parts), columns, scale)
