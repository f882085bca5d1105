"""Errors and warnings for users: what must hold, what was given, what to do.

Every error that a user can cause is a `FewstepError` with a one-line message, and the command
line prints that line. Any other error is a defect of fewstep: the command line prints its type and
text, and `--debug` prints the traceback too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class FewstepError(Exception):
    """Base of every error raised on purpose. Its message is one line for the user."""


class FewstepWarning(UserWarning):
    """Something that the user should know and that does not stop the command."""


class ShapeError(FewstepError):
    """A tensor has the wrong shape, dtype or device."""


class RangeError(FewstepError):
    """A number is outside what is allowed or what a model was trained for."""


class GridError(FewstepError):
    """A grid of angles is not decreasing, is out of range, or has the wrong number of steps."""


class RecipeError(FewstepError):
    """A recipe or a `--set` has an unknown key or a value that is not allowed."""


class NoDataError(RecipeError):
    """A recipe does not name its data."""


class FolderError(FewstepError):
    """A folder or file is missing, was not made by fewstep, is cut short, or cannot be written."""


class CheckpointError(FewstepError):
    """The checkpoints of a training run are damaged or belong to another run."""


class NonFiniteError(FewstepError):
    """A loss or gradient became infinite or not a number."""


class DataError(FewstepError):
    """A data set cannot be used as it is."""


class EmptySplitError(DataError):
    """A split of a data set, such as the held-out one, has no images."""


class Interrupted(FewstepError):
    """The user pressed Ctrl-C; the work done so far is saved."""


class TimeUp(Interrupted):
    """The time limit of a run has passed; what was done so far is kept."""


class ProcessLostError(FewstepError):
    """Another process of this run ended or does not answer."""


class MissingError(FewstepError):
    """An optional package is needed and is not installed."""


def in_units(size: float) -> str:
    """Return a number of bytes in words: 1.2 GB, 34 MB."""
    units = ["TB", "GB", "MB", "kB", "B"]
    while size >= 999.5 and len(units) > 1:
        units.pop()
        size /= 1000
    return f"{size:{'.2g' if size < 9.95 else '.0f'}} {units[-1]}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, of the machine or of its GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "not enough memory" in text or "out of memory" in text or "can't allocate memory" in text
    )


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest allowed name, or "" where none is near."""
    near = difflib.get_close_matches(given[:200], list(allowed), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def first_wrong(error: Any) -> str:
    """Return the first fault of a pydantic ValidationError as a sentence, with its key."""
    first = error.errors(include_url=False)[0]
    message = str(first["msg"])
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "value_error":
        return f"{key}: {message}.".removeprefix(": ").replace("Value error, ", "", 1)
    message = message.replace("Input should", "must", 1).replace("Extra inputs are", "is", 1)
    return f"{key} {message}, got {first['input']!r:.40}. Change it."
