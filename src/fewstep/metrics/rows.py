"""Rows of numbers that come batch by batch and are read again in pieces: on the disk when many."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

IN_MEMORY = 2**23  # bytes; more goes into a temporary file


class Rows:
    """Rows of one shape and dtype, kept in a temporary file that vanishes when it is closed."""

    def __init__(self, folder: Path | None = None) -> None:
        """Begin without rows. folder: of the file; by default that of temporary files."""
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115
            IN_MEMORY, dir=None if folder is None else str(folder)
        )
        self._count = 0
        self._like = torch.empty(0)

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._count

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of rows, and the shape of one."""
        return (self._count, *self._like.shape[1:])

    @property
    def ndim(self) -> int:
        """The number of dimensions, that of the rows included."""
        return len(self.shape)

    def append(self, rows: Tensor) -> None:
        """Add rows (B, *D)."""
        plain = rows.detach().cpu().contiguous()
        self._like = plain[:0]
        self._file.seek(0, 2)
        self._file.write(plain.flatten().view(torch.uint8).numpy().data)
        self._count += len(plain)

    def __getitem__(self, part: slice) -> Tensor:
        """Return the rows of a slice without a step."""
        first, last, _ = part.indices(self._count)
        row = self._like.shape[1:].numel() * self._like.element_size()
        self._file.seek(first * row)
        found = bytearray(self._file.read(max(0, last - first) * row))
        if not found:
            return self._like
        return torch.frombuffer(found, dtype=self._like.dtype).view(-1, *self._like.shape[1:])
