"""Masks of `fewstep inpaint`: opaque images, white where to draw and black where to keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewstep.errors import DataError, RangeError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

WHITE = 127  # the brightest pixel value that still counts as black


def mask_files(paths: Sequence[Path], images: Sequence[Path], size: tuple[int, int]) -> list[Path]:
    """Return the mask files, one or one per image.

    size: (width, height) of the images that the model draws.

    Raises:
        RangeError: another number of masks.
        DataError: a mask that is transparent, marks nothing, or has another shape than its image.
    """
    from fewstep.data import image_files, opaque, open_image

    files = image_files(paths)
    if len(files) not in (1, len(images)):
        raise RangeError(
            f"there must be one mask, or one per image, got {len(files)} masks for {len(images)} "
            f"images. Pass --mask once, or {len(images)} times."
        )
    for k, file in enumerate(files):
        mask = open_image(file)
        _check_opaque(mask, file)
        brightest = int(np.asarray(opaque(mask, str(file)).convert("L")).max())
        if brightest <= WHITE:
            raise DataError(
                f"a mask must be white where to draw, that is above {WHITE} of 255, got {file}, "
                f"whose brightest pixel is {brightest}. Save it with black as 0 and white as 255."
            )
        for image in images if len(files) == 1 else images[k : k + 1]:
            _check_shape(mask.size, file, open_image(image).size, image, size)
    return files


def read_masks(files: Sequence[Path], shape: tuple[int, ...], count: int) -> Tensor:
    """Return masks (count, 1, H, W) of 0 and 1 for states of shape (C, H, W).

    A pixel is 1 where more than half of its area in the file is white. Raises DataError where no
    pixel is.
    """
    from fewstep.data import read_images

    masks = (read_images(files, (1, *shape[1:])) > 0).float()
    for mask, file in zip(masks, files, strict=True):
        if not bool(mask.any()):
            raise DataError(
                "a mask must mark more than half of one of the model's "
                f"{shape[2]}x{shape[1]} cells, got {file}, which does not, in the central square "
                "that is drawn. Mark a larger area, or one nearer to the centre."
            )
    return masks.expand(count, -1, -1, -1)


def _check_opaque(mask: Image.Image, file: Path) -> None:
    # Some programs draw where a mask is transparent, others where it is opaque.
    if mask.has_transparency_data and np.asarray(mask.convert("RGBA"))[..., 3].min() < 255:
        raise DataError(
            f"a mask must be opaque, white where to draw and black where to keep, got {file} with "
            "transparent pixels. Fill them: with white to draw there, with black to keep."
        )


def _check_shape(
    mask: tuple[int, int],
    file: Path,
    image: tuple[int, int],
    source: Path,
    drawn: tuple[int, int],
) -> None:
    """Raise DataError unless the mask covers its image, or the square that is drawn of it."""
    height = image[1] * mask[0] / image[0]
    if abs(height - mask[1]) < 1 or mask == drawn:
        return
    raise DataError(
        f"a mask must have the width and height of its image, or be {drawn[0]}x{drawn[1]} as the "
        f"model draws, got {file} of {mask[0]}x{mask[1]} for {source} of {image[0]}x{image[1]}. "
        "Crop or extend the mask in the same way as the image."
    )
