"""The one decoder of fewstep: every image it reads comes upright, opaque and in 8 bits.

Training images, streams, `--image` and masks all go through `open_image`, so a file has the same
pixels wherever it is used.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from fewstep.data.buckets import nearest
from fewstep.errors import DataError

MAX_PIXELS = 178_956_970  # Pillow's own limit
MOST_PIXELS = 2**31 - 1  # what max_pixels may be raised to
WHITE = "white"
# EPS starts another program, and the others are recognised by Pillow but never decoded.
_UNREAD = {"EPS", "MPEG", "BUFR", "GRIB", "HDF5", "WMF"}


class Record(NamedTuple):
    """One example before decoding.

    where: what messages call it. data: the bytes of an image file, or the path of one. label: as
    it was found. problem: why there is no image, where there is none.
    """

    where: str
    data: bytes | str
    label: Any
    problem: str | None = None


@functools.cache
def suffixes() -> frozenset[str]:
    """Return the suffixes of the image files that can be read, lower case: .png, .jpg, ..."""
    Image.init()
    known = Image.registered_extensions()
    return frozenset(s for s, name in known.items() if name in _formats())


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _UNREAD)


def open_image(
    given: bytes | str | Path, where: str | None = None, *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Return a whole image: upright by its EXIF orientation, the first frame, in its own mode.

    Args:
        given: the bytes of an image file, or its path.
        where: what messages call it; by default the path.
        max_pixels: largest number of pixels, width x height.

    Raises:
        DataError: no such file, not a whole image, or more than max_pixels pixels.
    """
    where = where or ("the image" if isinstance(given, bytes) else str(given))
    with contextlib.ExitStack() as stack:
        file = _opened(given, where, stack)
        stack.enter_context(_without_pillows_limit())
        try:
            image = stack.enter_context(Image.open(file, formats=_formats()))
            if image.width * image.height <= max_pixels:
                image.load()
                if not image.width * image.height:
                    raise EOFError
                return _upright(image)
        except MemoryError:
            raise DataError(f"{where} does not fit in memory. Shrink the image.") from None
        except (UnidentifiedImageError, OSError, SyntaxError, EOFError) as error:
            raise DataError(f"{where} is not a whole image ({type(error).__name__}).") from None
        except Exception as error:  # noqa: BLE001  Pillow's readers raise anything on damaged files
            raise DataError(f"{where} is not a whole image ({type(error).__name__}).") from None
        raise DataError(
            f"{where} is an image of {image.width}x{image.height}, and images may have at most "
            f"{max_pixels:,} pixels. Shrink it, or raise max_pixels (data.max_pixels in a recipe)."
        )


def opaque(image: Image.Image, where: str, background: str = WHITE) -> Image.Image:
    """Return an image without transparency and in 8 bits, in a mode that converts to RGB and L.

    Transparent pixels are composed on the background. 16-bit pixels are divided by 257. Integer
    pixels of 32 bits are scaled by the smallest of 8, 16 and 31 bits that holds the largest of
    them; floating-point pixels by the smallest of 1, 255 and 65535.

    Raises DataError for pixels that are NaN, infinite, negative, or beyond these ranges.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image, where)
    if image.mode == "La":
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image
    over = image.convert("RGBA")
    ground = Image.new("RGBA", over.size, (*ImageColor.getrgb(background)[:3], 255))
    return Image.alpha_composite(ground, over).convert("RGB")


def square(image: Image.Image, size: int, where: str) -> Image.Image:
    """Return the central square of an image, shrunk to size x size.

    Shrinking averages over boxes of pixels where the ratio is whole, as downsampled ImageNet is
    made. Raises DataError for an image that is smaller than size.
    """
    if min(image.size) < size:
        raise DataError(
            f"{where} is {image.width}x{image.height}, smaller than size = {size}; images are "
            "never enlarged. Choose a smaller size, or a larger image."
        )
    return cover(image, (size, size))


def cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the largest central part of an image with the shape of `size`, shrunk to it.

    size: height and width, neither larger than the image's. Shrinks as `square` does.
    """
    height, width = size
    across = min(image.width, image.height * width / height)
    down = min(image.height, image.width * height / width)
    left, top = (image.width - across) // 2, (image.height - down) // 2
    box = (left, top, left + across, top + down)
    if box == (0, 0, width, height):
        return image
    return image.resize((width, height), Image.Resampling.BOX, box=box)


def decode(
    record: Record,
    size: int | None,
    channels: int,
    *,
    background: str = WHITE,
    max_pixels: int = MAX_PIXELS,
    buckets: Sequence[tuple[int, int]] = (),
) -> np.ndarray:
    """Return the image of a record, (C, H, W) uint8; cropped and shrunk where size is given.

    buckets: heights and widths, to the nearest of which it is cropped and shrunk instead.

    Raises DataError, naming the record, as `open_image`, `opaque` and `square` do, and for an image
    that is smaller than all buckets.
    """
    if record.problem is not None:
        raise DataError(record.problem)
    found = open_image(record.data, record.where, max_pixels=max_pixels)
    try:
        mode = "RGB" if channels == 3 else "L"
        pixels = opaque(found, record.where, background).convert(mode)
    except (ValueError, OSError, ImportError) as error:
        raise DataError(
            f"{record.where} has pixels of mode {found.mode}, which Pillow does not convert "
            f"({type(error).__name__}). Save it as RGB."
        ) from None
    except MemoryError:
        raise DataError(f"{record.where} does not fit in memory. Shrink the image.") from None
    if buckets:
        found_bucket = nearest((pixels.height, pixels.width), buckets)
        if found_bucket is None:
            raise DataError(
                f"{record.where} is {pixels.width}x{pixels.height}, smaller than all buckets; "
                "images are never enlarged. Add a smaller bucket, or give a larger image."
            )
        pixels = cover(pixels, buckets[found_bucket])
    elif size is not None:
        pixels = square(pixels, size, record.where)
    array = np.asarray(pixels, dtype=np.uint8)
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _opened(given: bytes | str | Path, where: str, stack: contextlib.ExitStack) -> Any:
    if isinstance(given, bytes):
        if not given:
            raise DataError(f"{where} is not a whole image: it is empty.")
        return io.BytesIO(given)
    try:
        if not os.path.isfile(given):  # a pipe or a device would never end
            there = "is not a file" if os.path.exists(given) else "does not exist"
            raise DataError(f"{where} {there}. Give the path of an image.")
        if not os.path.getsize(given):
            raise DataError(f"{where} is not a whole image: it is empty.")
        return stack.enter_context(open(given, "rb"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise DataError(f"{where} cannot be read: {reason}.") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001  a damaged EXIF block names no orientation, and viewers ignore it
        turned = image.copy()
    turned.format = image.format
    return turned


def _eight_bits(image: Image.Image, where: str) -> Image.Image:
    values = np.asarray(image)
    top = _top(values, image, where)
    grey = np.rint(values.astype(np.float32).clip(0, top) * np.float32(255 / top)).astype(np.uint8)
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return Image.fromarray(grey)
    alpha = np.where(values == clear, 0, 255).astype(np.uint8)
    return Image.fromarray(np.stack([grey, alpha], axis=-1))


def _top(values: np.ndarray, image: Image.Image, where: str) -> float:
    """Return the value of a white pixel."""
    if image.mode.startswith("I;16") or image.format == "PNG":
        return 65535
    if not np.isfinite(values).all():
        raise DataError(f"{where} has pixels that are NaN or infinite. Save it with finite pixels.")
    low, high = float(values.min()), float(values.max())
    tops, slack = ((1, 255, 65535), 1e-3) if image.mode == "F" else ((255, 65535, 2**31 - 1), 0)
    top = next((t for t in tops if high <= t * (1 + slack)), None)
    if top is not None and low >= -slack * top:
        return top
    kind, ranges = "integer", "[0, 255] or [0, 65535]"
    if image.mode == "F":
        kind, ranges = "floating-point", "[0, 1], [0, 255] or [0, 65535]"
    raise DataError(
        f"{where} has {kind} pixels from {low:g} to {high:g}; they must lie in {ranges}. Save it "
        "as an 8-bit or 16-bit image."
    )


_LIMIT_LOCK = threading.Lock()
_limit: list[Any] = []  # Pillow's limit, once for each thread that decodes now


@contextlib.contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Lift Pillow's limit on pixels: `open_image` has its own, which it can explain."""
    with _LIMIT_LOCK:
        _limit.append(_limit[0] if _limit else Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _LIMIT_LOCK:
            last = _limit.pop()
            if not _limit:
                Image.MAX_IMAGE_PIXELS = last
