"""One writer per folder: a lock that the system itself releases when its process ends.

The lock is an `flock` on a small file in the folder. A process that crashes or is killed loses it
with its open files, so a file that was left behind blocks nobody.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from fewstep.atomic import translate_os_errors
from fewstep.errors import FolderError

LOCK = ".fewstep.lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_held: dict[tuple[int, Path], int] = {}
_guard = threading.Lock()


@contextlib.contextmanager
def writer_of(folder: Path | str) -> Iterator[None]:
    """Make this process the only fewstep process that writes to a folder.

    A missing folder is created. A process may take the lock of a folder again while it holds it.
    Of several processes that share a run (torchrun), only the main one may call this. File systems
    without locks are written without one.

    Raises FolderError: another process is writing to the folder, or it cannot be written.
    """
    folder = Path(folder)
    with translate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        key = (os.getpid(), folder.resolve())
    with _guard:
        handle = None if key in _held else _acquire(folder)
        _held[key] = _held.get(key, 0) + 1
    try:
        yield
    finally:
        with _guard:
            _held[key] -= 1
            if not _held[key]:
                del _held[key]
        if handle is not None:
            # Removed while it is locked: whoever opened it before sees that it is gone.
            (folder / LOCK).unlink(missing_ok=True)
            os.close(handle)


def _acquire(folder: Path) -> int | None:
    path = folder / LOCK
    while True:
        with translate_os_errors(folder):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(handle)
            os.close(handle)
            raise FolderError(
                f"only one process may write to {folder} at a time, and {holder} is writing to it. "
                "Wait until that process has ended, stop it, or use another folder."
            ) from None
        except OSError as error:
            os.close(handle)
            if error.errno in _UNSUPPORTED:
                return None
            raise
        if _is_still_at(path, handle):
            now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
            with contextlib.suppress(OSError):  # a full disk: the lock holds without its text
                os.ftruncate(handle, 0)
                os.write(handle, json.dumps({"process": os.getpid(), "since": now}).encode())
            return handle
        os.close(handle)


def _holder(handle: int) -> str:
    try:
        found = json.loads(os.pread(handle, 4096, 0))
        return f"process {int(found['process'])} (since {found['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _is_still_at(path: Path, handle: int) -> bool:
    mine = os.fstat(handle)
    try:
        there = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
