"""What a person is told when something is wrong: what was given, what is allowed, what to do.

Every error that a user can cause is a `FewstepError` with a one-line message; the command
line prints that line and nothing else. Anything else that escapes is a defect of fewstep.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FewstepError(Exception):
    """Base of every error raised on purpose. The message is one line, for a person."""


class ShapeError(FewstepError):
    """A tensor has the wrong shape, dtype or device."""


class RangeError(FewstepError):
    """A number is outside what is allowed or what a model was trained for."""


class GridError(FewstepError):
    """A grid of angles is not decreasing, is out of range, or has the wrong number of steps."""


class RecipeError(FewstepError):
    """A recipe or an override has a misspelt key or a value that is not allowed."""


class FolderError(FewstepError):
    """A model folder or data file is missing, foreign, or cut short."""


class CheckpointError(FewstepError):
    """A training checkpoint is damaged or belongs to another run."""


class NonFiniteError(FewstepError):
    """A loss or gradient became infinite or not a number."""


class DataError(FewstepError):
    """A data set cannot be used as it is."""


class Interrupted(FewstepError):
    """The user pressed Ctrl-C; what was done so far is kept."""


class ProcessLostError(FewstepError):
    """Another process of this run died or does not answer."""


class MissingError(FewstepError):
    """An optional package is needed and not installed."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest allowed name, or "" where none is near."""
    near = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
