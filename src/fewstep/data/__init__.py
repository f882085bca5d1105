"""Images and their conditions: `DATASETS` come with fewstep, `open_dataset` opens any."""

from __future__ import annotations

from collections.abc import Callable

from fewstep.data.augment import augment, uniform
from fewstep.data.config import DataConfig
from fewstep.data.dataset import SPLITS, Dataset
from fewstep.data.digits import Digits
from fewstep.data.images import Images
from fewstep.data.order import epochs, indices
from fewstep.errors import DataError, did_you_mean

DATASETS: dict[str, Callable[[str], Dataset]] = {"digits": Digits}


def open_dataset(data: DataConfig | str, split: str = "train") -> Dataset:
    """Return a split, "train" or "held-out", of a data set in `DATASETS` or of one's own images.

    data: its name or path, or with settings a DataConfig. Raises DataError for a name or split
    that is not there, and as `Images` does.
    """
    config = DataConfig(name=data) if isinstance(data, str) else data
    if config.name in DATASETS:
        return DATASETS[config.name](split)
    if not _is_path(config.name):
        raise DataError(
            f"{config.name!r} is not a data set; there is {', '.join(sorted(DATASETS))}, or give "
            f"the path of your own.{did_you_mean(config.name, DATASETS)}"
        )
    return Images(config, split)


def _is_path(name: str) -> bool:
    from pathlib import Path

    return Path(name).exists() or "/" in name or "." in name


__all__ = [
    "DATASETS",
    "SPLITS",
    "DataConfig",
    "Dataset",
    "Digits",
    "Images",
    "augment",
    "epochs",
    "indices",
    "open_dataset",
    "uniform",
]
