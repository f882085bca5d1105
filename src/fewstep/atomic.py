"""Files and folders that appear complete or not at all, and hashes of files and of JSON.

Both are written beside their final place under a name that starts with `.partial-`, flushed to
disk, and renamed. Every writer has a partial name of its own, so two processes never meet in one.
A process that is killed leaves its partial behind; the next writer of the same path removes it,
which it can tell from a partial that is being written by the lock that only a live process holds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from fewstep.errors import FolderError

PARTIAL = ".partial-"
OLD = f"{PARTIAL}old-"
ROOM = 1 << 20  # bytes; a disk with less free is full
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_CANNOT_WRITE = (*_NO_ROOM, errno.EACCES, errno.EROFS, errno.EPERM, errno.EFBIG)


def atomic_write(path: Path, data: bytes) -> None:
    """Write a whole file, or leave the file that was there.

    Raises FolderError where it cannot be written: a full disk, a missing permission, a folder of
    that name.
    """
    with translate_os_errors(path), atomic_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write; at the end it takes the place of `path`, complete.

    Where the body raises, `path` stays as it was. Raises FolderError as `atomic_write` does.
    """
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        partial, handle = _partial(path, folder=False)
    try:
        with translate_os_errors(path, _CANNOT_WRITE), open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_json(path: Path, data: object) -> None:
    """Write JSON, indented, as `atomic_write` does."""
    atomic_write(path, (json.dumps(data, indent=2) + "\n").encode())


@contextlib.contextmanager
def atomic_folder(path: Path, mark: str | None = None) -> Iterator[Path]:
    """Give an empty folder to fill; at the end it takes the place of `path`, complete.

    A folder that is there already is replaced only where nothing of the user's is lost: it must
    hold the file `mark` (where one is named), and no file that the new folder does not have too.
    Where the body raises, `path` stays as it was.

    Raises FolderError: the path holds something else, is a link, or cannot be written.
    """
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _put_back(path)
        check_replaceable(path, mark)
        _remove_stale(path)
        partial, handle = _partial(path, folder=True)
    try:
        # Inside the clean-up: whether the disk is full is asked before room is made again.
        with translate_os_errors(path, _CANNOT_WRITE):
            yield partial
        with translate_os_errors(path):
            for file in sorted(partial.rglob("*")):
                _sync(file)
            _sync(partial)
            _swap(partial, path, mark)
    except BaseException:
        _put_back(path)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(handle)
    _sync(path.parent)
    _remove_stale(path)


def check_replaceable(path: Path, mark: str | None = None) -> None:
    """Raise FolderError unless `path` is free, an empty folder, or one that fewstep made.

    mark: a file that every folder of this kind holds.
    """
    if path.is_symlink():
        raise FolderError(
            f"{path} must be a folder or not exist, and it is a link. fewstep does not replace "
            "links: remove it, or use another name."
        )
    if path.exists() and not path.is_dir():
        raise FolderError(
            f"{path} must be a folder or not exist, and it is a file. Move it, or use another "
            "folder."
        )
    if mark is not None and path.exists() and not (path / mark).is_file():
        found = sorted(p.name for p in path.iterdir())
        if found:
            raise FolderError(
                f"{path} must be empty or hold a {mark} of fewstep, and it holds "
                f"{_listed(found)}. fewstep does not replace folders that it did not make: move "
                "it, or use another folder."
            )


def sha256(path: Path) -> str:
    """Return the hash of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def json_sha256(value: object) -> str:
    """Return the hash of what JSON can hold; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def translate_os_errors(path: Path, only: tuple[int, ...] | None = None) -> Iterator[None]:
    """Turn an error of the operating system about writing `path` into a FolderError.

    only: error numbers to translate, where the body also does other things; by default all.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else _number_in(error, path)
        if number is None or (only is not None and number not in only):
            raise
        advice = "Use another folder or file"
        if number in _NO_ROOM:
            advice = "No half-written file is left. Free some space or use another folder"
        shown = str(path) if len(str(path)) < 300 else f"{str(path)[:200]}..."
        raise FolderError(
            f"{shown} cannot be written: {os.strerror(number)}. {advice}, then run the same "
            "command."
        ) from None


def _swap(partial: Path, path: Path, mark: str | None) -> None:
    """Rename the complete folder to its name; an earlier one of that name is removed."""
    while True:
        if path.exists():
            check_replaceable(path, mark)
            _check_nothing_lost(path, partial)
            path.rename(path.with_name(f"{OLD}{secrets.token_hex(4)}-{path.name}"))
        try:
            partial.rename(path)
        except OSError as error:
            # Another process put a folder there between the two renames.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return


def _check_nothing_lost(path: Path, partial: Path) -> None:
    old, new = ({p.relative_to(f) for p in f.rglob("*")} for f in (path, partial))
    lost = sorted(str(p) for p in old - new if not (path / p).is_dir())
    if lost:
        raise FolderError(
            f"{path} must hold only what fewstep wrote before it is replaced, and it also holds "
            f"{_listed(lost)}. Move that, or use another folder."
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _partial(path: Path, *, folder: bool) -> tuple[Path, int]:
    """Create a partial file or folder of `path`, locked; return it and the handle of the lock."""
    while True:
        partial = path.with_name(f"{PARTIAL}{secrets.token_hex(4)}-{path.name}")
        if folder:
            partial.mkdir()
        flags = os.O_RDONLY if folder else os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            handle = os.open(partial, flags, 0o666)
        except FileNotFoundError:
            if not folder:
                raise
            continue  # another process took it for a stale one
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if partial.exists():
            return partial, handle
        os.close(handle)  # another process took it for a stale one before it was locked


def _remove_stale(path: Path) -> None:
    """Remove what killed writers of this path left behind; what is being written is locked."""
    for stale in _leftovers(path):
        if stale.name.startswith(OLD) and not path.exists():
            continue
        with contextlib.suppress(OSError):
            handle = os.open(stale, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(stale)
            finally:
                os.close(handle)


def _put_back(path: Path) -> None:
    """Undo the first of the two renames of `_swap` where a kill prevented the second."""
    for old in _leftovers(path):
        if old.name.startswith(OLD) and not path.exists():
            with contextlib.suppress(OSError):
                old.rename(path)


def _leftovers(path: Path) -> list[Path]:
    pattern = re.compile(rf"{re.escape(PARTIAL)}(old-)?[0-9a-f]{{8}}-{re.escape(path.name)}")
    try:
        return sorted(path.with_name(n) for n in os.listdir(path.parent) if pattern.fullmatch(n))
    except OSError:
        return []


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _number_in(error: Exception, path: Path) -> int | None:
    """Return the number of the system's error behind one of safetensors or torch, or None."""
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        return int(found[1])
    if _is_full(path):
        return errno.ENOSPC
    torch_failed = re.search(r"PytorchStreamWriter failed writing|unexpected pos \d+", str(error))
    return errno.EFBIG if torch_failed else None  # the disk has room: a limit on files


def _is_full(path: Path) -> bool:
    try:
        existing = next(p for p in path.absolute().parents if p.exists())
        return shutil.disk_usage(existing).free < ROOM
    except OSError:
        return False
