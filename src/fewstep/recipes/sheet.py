"""Contact sheets: images side by side, as a PNG that carries its settings."""

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

GAP = 2  # pixels between images, at the final scale
PAPER = 255


def to_pixels(images: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return images (B, C, H, W) in [-1, 1], C 1 or 3, as bytes (B, H, W) or (B, H, W, 3)."""
    array = ((images.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    pixels: np.ndarray[Any, np.dtype[np.uint8]] = array.cpu().numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def contact_sheet(images: Tensor, columns: int, scale: int = 1) -> Image.Image:
    """Return images (B, C, H, W) in [-1, 1] in rows of `columns`, each pixel `scale` wide."""
    pixels = to_pixels(images).repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width = pixels.shape[:3]
    rows = -(-count // columns)
    size = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, *pixels.shape[3:])
    sheet = np.full(size, PAPER, dtype=np.uint8)
    for k, image in enumerate(pixels):
        top, left = (k // columns) * (height + GAP), (k % columns) * (width + GAP)
        sheet[top : top + height, left : left + width] = image
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
    """Return rows (n, C, H, W) of images that belong together, one above the other.

    More than `columns` images go on below; the last rows are filled up with paper.
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
