"""Single image files, read as a model's training images were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewstep.data.source import Record, decode
from fewstep.errors import DataError, ShapeError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files, and those of the folders in the order of their names.

    Raises DataError: a path that is not there, or a folder without images.
    """
    out: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist; give an image, or a folder of images.")
        found = [path] if path.is_file() else sorted(path.iterdir())
        found = [f for f in found if f.is_file() and (f == path or f.suffix.lower() in SUFFIXES)]
        if not found:
            raise DataError(f"{path} has no images in it; give a folder of PNG or JPEG files.")
        out += found
    return out


def read_images(files: Sequence[Path], shape: tuple[int, ...]) -> Tensor:
    """Return the images (B, C, H, W) in [-1, 1], cropped and shrunk to shape (C, H, W).

    Raises DataError: no image, or one that is smaller; ShapeError: a shape that is not square.
    """
    channels, height, width = shape
    if height != width:
        raise ShapeError(
            f"images of {width}x{height}; files are read for models of square ones only. Read "
            "yours in Python, and give a tensor."
        )
    read = [decode(Record(str(f), str(f), None), height, channels) for f in files]
    pixels = torch.stack([torch.from_numpy(p.copy()) for p in read])
    return pixels.float().div_(127.5).sub_(1.0)
