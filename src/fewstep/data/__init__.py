"""Images and their conditions: `DATASETS` lists what there is, `open_dataset` opens it."""

from __future__ import annotations

from collections.abc import Callable

from fewstep.data.dataset import SPLITS, Dataset
from fewstep.data.digits import Digits
from fewstep.data.order import indices
from fewstep.errors import DataError, did_you_mean

DATASETS: dict[str, Callable[[str], Dataset]] = {"digits": Digits}


def open_dataset(name: str, split: str = "train") -> Dataset:
    """Return a split, "train" or "held-out", of the data set of that name in `DATASETS`.

    Raises DataError for a name or split that is not there.
    """
    if name not in DATASETS:
        raise DataError(
            f"{name!r} is not a data set; there is {', '.join(sorted(DATASETS))}."
            f"{did_you_mean(name, DATASETS)}"
        )
    return DATASETS[name](split)


__all__ = ["DATASETS", "SPLITS", "Dataset", "Digits", "indices", "open_dataset"]
