"""One writer per folder, across processes, whatever becomes of the one that holds the lock."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fewstep.errors import FolderError
from fewstep.lock import LOCK, writer_of


def in_child(folder: Path, *, then: str) -> tuple[int, int, int]:
    """Fork a child that takes the lock; return its pid and the two pipes to talk to it."""
    ready, tell = os.pipe()
    wait, go = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tell)
        os.close(wait)
        assert os.read(ready, 1) == b"x"
        return pid, ready, go
    try:
        os.close(go)
        with writer_of(folder):
            os.write(tell, b"x")
            os.read(wait, 1)
            if then == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
    finally:
        os._exit(0)


@pytest.mark.parametrize("then", ["end", "crash"])
def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path: Path, then: str) -> None:
    folder = tmp_path / "run"
    pid, _, go = in_child(folder, then=then)
    with (
        pytest.raises(FolderError, match=rf"only one process .* process {pid} \(since 2"),
        writer_of(folder),
    ):
        pass
    os.close(go)
    os.waitpid(pid, 0)
    assert (folder / LOCK).exists() == (then == "crash")
    with writer_of(folder):  # a lock file that a crash left behind blocks nobody
        assert (folder / LOCK).is_file()


def test_the_lock_may_be_taken_again_by_its_process_and_leaves_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    with writer_of(folder), writer_of(folder / ".." / "run"):
        assert (folder / LOCK).is_file()
    assert not list(folder.iterdir())
    with writer_of(folder):
        (folder / "made").touch()
    assert [p.name for p in folder.iterdir()] == ["made"]


@pytest.mark.parametrize("name", ["file", "file/run", "a" * 300])
def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    bad = writer_of(tmp_path / name)
    with pytest.raises(FolderError, match="cannot be written") as caught, bad:
        pass
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
