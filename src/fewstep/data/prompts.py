"""Prompts without images: what to draw is known, and states come from the teacher itself."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

from fewstep.data.dataset import check_index
from fewstep.errors import DataError


class Prompts:
    """A file of prompts, one a line; empty lines do not count."""

    SUFFIX = ".txt"

    def __init__(self, path: Path | str) -> None:
        """Read the file. Raises DataError: no such file, not UTF-8, or no prompt in it."""
        path = Path(path)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as text ({type(error).__name__}).") from None
        self._texts = [line.strip() for line in lines if line.strip()]
        if not self._texts:
            raise DataError(f"{path} is empty; give a file with a prompt a line.")

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
