"""Files and folders that appear whole or not at all, and a hash to tell that they are.

Both are written beside their final place under a name that starts with `.partial-`, flushed to the
disk, and renamed. A process killed midway leaves only the partial one, which the next writer of the
same name removes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from fewstep.errors import FolderError

PARTIAL = ".partial-"
ROOM = 1 << 20  # bytes; a disk with less free is full
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.EFBIG)


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file whole, or leave what was there. Raises FolderError where the disk is full."""
    partial = path.with_name(PARTIAL + path.name)
    with _said(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; at the end it takes the place of `path`, whole.

    Where the body raises, `path` stays as it was. Raises FolderError where the disk is full.
    """
    partial, old = (path.with_name(f"{PARTIAL}{mark}{path.name}") for mark in ("", "old-"))
    try:
        # Inside the clean-up: whether the disk is full is asked before room is made again.
        with _said(path):
            if old.exists() and not path.exists():
                old.rename(path)  # killed between the two renames below
            for stale in (partial, old):
                shutil.rmtree(stale, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            for file in sorted(partial.rglob("*")):
                _sync(file)
            _sync(partial)
            if path.exists():
                path.rename(old)
            partial.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sha256(path: Path) -> str:
    """Return the hash of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _existing(path: Path) -> Path:
    return next(p for p in path.absolute().parents if p.exists())


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch and safetensors report a full disk in words of their own.
        full = shutil.disk_usage(_existing(path)).free < ROOM
        number = error.errno if isinstance(error, OSError) else errno.ENOSPC if full else None
        if number not in _CANNOT_WRITE:
            raise
        reason = os.strerror(number)
        raise FolderError(
            f"{path} cannot be written: {reason}. Nothing half-written is left; make room or give "
            "another folder, then run the same command."
        ) from None
