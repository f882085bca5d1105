"""The settings of one part (config.json), checked before anything is built from them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from fewstep.errors import FolderError
from fewstep.files.parts import is_number, read_json


def check_settings(kind: Any, path: Path) -> None:
    """Raise FolderError for settings of the wrong type, quantised weights, or a number too large.

    kind: the class that will be built. path: of the part's config.json.
    """
    config = read_json(path)
    known = inspect.signature(kind.__init__).parameters
    for key, value in config.items():
        if key in known and not _is_like(value, known[key]):
            raise FolderError(
                f"{path}: {key} must be like {known[key].default!r}, got {str(value)[:40]!r}. Copy "
                "the file again."
            )
    if config.get("quantization_config") is not None:
        raise FolderError(
            f"{path}: quantization_config must not be set: a quantised model cannot be distilled. "
            "Give the model that it was made from."
        )
    for key, value in config.items():
        limit = 1000 if "layers" in key else 10**7
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) > limit:
                raise FolderError(
                    f"{path}: {key} must lie in [-{limit}, {limit}], got {str(number)[:40]}. Copy "
                    "the file again."
                )


def _is_like(value: Any, parameter: inspect.Parameter) -> bool:
    """Whether a setting has the type of its default: a number, a text or a list of them."""
    default, types = parameter.default, str(parameter.annotation)
    counts = isinstance(default, int | float) and not isinstance(default, bool)
    if value is None:
        return not counts or "None" in types or "Optional" in types
    if isinstance(value, list) and not isinstance(default, list | tuple):
        return default is None or "tuple" in types.lower() or "list" in types.lower()
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, str):
        return isinstance(value, str)
    if isinstance(default, list | tuple):
        return isinstance(value, list)
    return (is_number(value) and not value < 0 <= default) if counts else True
