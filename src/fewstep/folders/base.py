"""Adapters that are kept apart: folders of an adapter alone, and where their base is."""

from __future__ import annotations

import os
from pathlib import Path

from fewstep.errors import FolderError
from fewstep.models.card import CARD, read_card


def is_apart(folder: Path) -> bool:
    """Whether a folder holds an adapter alone, over a base that is elsewhere."""
    if not (folder / CARD).is_file():
        return False
    lora = read_card(folder).lora
    return lora is not None and not lora.merged


def base_of(folder: Path) -> Path:
    """Return the folder with all parts: the base of an adapter that is kept apart, or itself.

    Raises FolderError where the base is not there.
    """
    if not is_apart(folder):
        return folder
    lora = read_card(folder).lora
    assert lora is not None
    base = Path(os.path.normpath(folder / (lora.base or "")))
    if base == Path(os.path.normpath(folder)) or (base.is_dir() and is_apart(base)):
        raise FolderError(
            f"{folder / CARD}: lora.base must be the folder of a whole model, got {lora.base!r}. "
            "Write the place of the base into it."
        )
    if lora.base is None or not base.is_dir():
        raise FolderError(
            f"{folder} holds an adapter alone; its base, of the weights {lora.base_sha256[:16]}, "
            f"is not at {base}. Bring it there, or write its place into lora.base of "
            f"{folder / CARD}."
        )
    return base
