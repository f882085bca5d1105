"""Images and their conditions: `DATASETS` come with fewstep, `open_dataset` opens any."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from fewstep.data.ahead import Ahead
from fewstep.data.augment import augment, uniform
from fewstep.data.buckets import Buckets
from fewstep.data.captions import caption, captions_of, fill
from fewstep.data.config import DataConfig, check_data
from fewstep.data.dataset import SPLITS, Dataset
from fewstep.data.decode import MAX_PIXELS, opaque, open_image, square
from fewstep.data.digits import Digits
from fewstep.data.files import image_files, read_images
from fewstep.data.images import Images, open_images
from fewstep.data.listing import kind_of
from fewstep.data.permutation import epochs, indices
from fewstep.data.prompts import Prompts
from fewstep.data.shards import Shards
from fewstep.data.text import read_prompts, read_text
from fewstep.errors import DataError, did_you_mean

DATASETS: dict[str, Callable[[str], Dataset]] = {"digits": Digits}


def open_dataset(data: DataConfig | str, split: str = "train") -> Dataset:
    """Return a split, "train" or "held-out", of a data set in `DATASETS` or of one's own images.

    data: its name or path, or with settings a DataConfig. Raises DataError for a name or split
    that is not there, and as `Images` does.
    """
    config = DataConfig(name=data) if isinstance(data, str) else data
    if config.name in DATASETS:
        if config.buckets:
            raise DataError(f"data.buckets must be left out for {config.name}, all of one size.")
        return DATASETS[config.name](split)
    if not _is_path(config.name):
        raise DataError(
            f"{config.name!r} is not a data set; there is {', '.join(sorted(DATASETS))}, or give "
            f"the path of your own images.{did_you_mean(config.name, DATASETS)}"
        )
    found: Dataset = Shards(config, split) if config.stream else open_images(config, split)
    if config.crop >= min(found.shape[1:]):
        raise DataError(
            f"data.crop must be smaller than the images, got {config.crop} for images of "
            f"{found.shape[2]}x{found.shape[1]}. Choose a smaller crop."
        )
    return found


def examples(
    data: Dataset, seed: int, update: int, size: int, *, part: int, parts: int
) -> tuple[Tensor, Tensor]:
    """Return the examples (size,) that one part of an update sees, and the epoch of each.

    A pure function of its arguments: a permutation an epoch, or the own order of a stream or of
    buckets. Raises RangeError as `indices` and `Shards.examples` do.
    """
    if isinstance(data, Shards | Buckets):
        return data.examples(seed, update, size, part=part, parts=parts)
    index = indices(seed, update, size, len(data), rank=part, world=parts)
    return index, epochs(update, size, len(data), rank=part, world=parts)


def _is_path(name: str) -> bool:
    return kind_of(name) is not None or "/" in name or "." in name


if not TYPE_CHECKING:  # mypy would take every other name for one of these

    def __getattr__(name: str) -> object:
        """Return `examples` under its name of before 0.2, with a warning."""
        if name == "walk":
            warnings.warn("data.walk is now data.examples", DeprecationWarning, stacklevel=2)
            return examples
        raise AttributeError(f"module 'fewstep.data' has no attribute {name!r}")


load_data = open_dataset  # the same function under the verb of `fewstep.load`

__all__ = [
    "DATASETS",
    "MAX_PIXELS",
    "SPLITS",
    "Ahead",
    "Buckets",
    "DataConfig",
    "Dataset",
    "Digits",
    "Images",
    "Prompts",
    "Shards",
    "augment",
    "caption",
    "captions_of",
    "check_data",
    "epochs",
    "examples",
    "fill",
    "image_files",
    "indices",
    "load_data",
    "opaque",
    "open_dataset",
    "open_image",
    "read_images",
    "read_prompts",
    "read_text",
    "square",
    "uniform",
]
