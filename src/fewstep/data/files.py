"""Single image files, read as a model's training images were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewstep.data.decode import MAX_PIXELS, WHITE, Record, decode
from fewstep.data.listing import kind_of, list_folder
from fewstep.errors import DataError, ShapeError
from fewstep.pixels import from_bytes


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files, and the images directly in the folders, in the order of their names.

    The listing is that of training: every suffix that Pillow reads, links followed, hidden files
    ignored. Raises DataError: a path that is not there, or a folder without images.
    """
    out: list[Path] = []
    for path in paths:
        if kind_of(path) == "folder":
            found = [path / f for f in list_folder(path, deep=False).images]
            if not found:
                raise DataError(f"{path} has no images in it. Give a folder of PNG or JPEG files.")
            out += found
        elif kind_of(path) is None:
            raise DataError(f"{path} does not exist. Give an image, or a folder of images.")
        else:
            out.append(path)
    return out


def read_images(
    files: Sequence[Path],
    shape: tuple[int, ...],
    *,
    background: str = WHITE,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Return the images (B, C, H, W) in [-1, 1], cropped and shrunk to shape (C, H, W).

    background: colour that transparent pixels are composed on. max_pixels: largest image that is
    read. Raises DataError: not a whole image, or one that is smaller than shape; ShapeError: a
    shape that is not square.
    """
    channels, height, width = shape
    if height != width:
        raise ShapeError(
            f"files are read for models of square images only, and this model's are "
            f"{width}x{height}. Read the images in Python, and pass a tensor."
        )
    read = [
        decode(
            Record(str(f), str(f), None),
            height,
            channels,
            background=background,
            max_pixels=max_pixels,
        )
        for f in files
    ]
    if not read:
        raise DataError("there are no images to read. Give at least one file.")
    pixels = torch.stack([torch.from_numpy(p.copy()) for p in read])
    return from_bytes(pixels)
