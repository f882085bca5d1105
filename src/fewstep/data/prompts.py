"""Prompts without images: conditions are known, and states come from the teacher itself."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

from fewstep.data.dataset import check_index
from fewstep.data.text import read_prompts


class Prompts:
    """A file of prompts, one per line; empty lines are left out.

    Attributes:
        summary: what was found in the file, in one line.
    """

    SUFFIX = ".txt"

    def __init__(self, path: Path | str) -> None:
        """Read the file. Raises DataError as `fewstep.data.read_prompts` does."""
        self._texts = read_prompts(path)
        unique = len(set(self._texts))
        self.summary = f"{path}: {len(self._texts)} prompts, {unique} of them distinct"

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self._texts)

    def texts(self, index: Tensor) -> list[str]:
        """Return the prompts numbered by index (B,). Raises DataError as `Dataset.batch` does."""
        check_index(index, len(self))
        return [self._texts[k] for k in index.tolist()]

    def content_hash(self) -> str:
        """Return the sha256, in hex, of the prompts."""
        return hashlib.sha256("\n".join(self._texts).encode()).hexdigest()
