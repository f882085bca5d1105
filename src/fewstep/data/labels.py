"""Classes and captions from the values of a column: one rule for cached and streamed data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from fewstep.data.augment import uniform
from fewstep.errors import DataError

LARGEST = 2**31 - 1  # of class ids; larger numbers are names or hashes of something else


class Classes(NamedTuple):
    """The classes that are there. ids: of each example, (N,) int64, 0 to len(names) - 1."""

    names: tuple[str, ...]
    ids: np.ndarray


def class_of(value: Any, where: str, known: int = 0) -> int | str:
    """Return the label of one example: a whole number from 0, or a name.

    Booleans are the names False and True, and 2.0 is 2: pandas stores whole numbers so where
    others are missing. known: number of declared classes, or 0.

    Raises DataError, naming the example, for a label that is missing (None, NaN, -1, empty), or
    is no whole number from 0 to 2**31 - 1 and no text.
    """
    if isinstance(value, float | np.floating) and math.isfinite(value) and value == int(value):
        value = int(value)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f"{where} has no label.")
    if isinstance(value, bool | str):
        return _text(str(value), where, "label")
    if not isinstance(value, int):
        raise DataError(
            f"{where} has a label of type {type(value).__name__}, {str(value)[:40]}; labels must "
            "be whole numbers or text, one for each image."
        )
    if value < 0:
        raise DataError(f"{where} has no label.")
    if known and value >= known:
        raise DataError(f"{where} has label {value}; there are {known} classes.")
    if value > LARGEST:
        raise DataError(
            f"{where} has label {value}; labels may be at most {LARGEST}. Write larger ones as "
            "text."
        )
    return value


def caption_of(value: Any, where: str, number: int) -> str:
    """Return the caption of one example; of several, the one that a hash of its number chooses.

    Raises DataError, naming the example, where there is none, or it is no text.
    """
    several = list(value) if isinstance(value, list | tuple) else [value]
    for one in several:
        if not (one is None or isinstance(one, str) or _is_nan(one)):
            raise DataError(
                f"{where} has a caption of type {type(one).__name__}; captions must be text, or "
                "lists of texts."
            )
    texts = [one for one in several if isinstance(one, str) and one.strip()]
    if not texts:
        raise DataError(f"{where} has no caption.")
    if len(texts) == 1:
        return _text(texts[0], where, "caption")
    chosen = float(uniform(0, "caption of several", torch.tensor([number])))
    return _text(texts[min(int(chosen * len(texts)), len(texts) - 1)], where, "caption")


def number_classes(labels: Sequence[int | str], declared: Sequence[str] = ()) -> Classes:
    """Return the classes that are there, and the id of each example.

    Whole numbers keep their order, and are named by `declared` or by themselves. Names are in the
    order of their text, or of their value where all are whole numbers.
    """
    found = set(labels)
    if all(isinstance(v, int) for v in found):
        numbers = sorted(int(v) for v in found)
        names = [declared[k] if declared else str(k) for k in numbers]
        place: dict[Any, int] = {k: i for i, k in enumerate(numbers)}
        return Classes(tuple(names), np.array([place[v] for v in labels], np.int64))
    names = in_order({str(v) for v in found})
    place = {name: i for i, name in enumerate(names)}
    return Classes(tuple(names), np.array([place[str(v)] for v in labels], np.int64))


def in_order(names: set[str]) -> list[str]:
    """Return names in the order of their text, or of their value where all are whole numbers."""
    if all(n.isascii() and n.isdigit() and len(n) < 20 for n in names):
        return sorted(names, key=lambda n: (int(n), n))
    return sorted(names)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _text(text: str, where: str, kind: str) -> str:
    if not text.strip():
        raise DataError(f"{where} has no {kind}.")
    # A name from a file system may hold bytes that are no text, and no file could keep it.
    return text.encode("utf-8", "replace").decode("utf-8")
