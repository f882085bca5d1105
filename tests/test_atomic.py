"""Files and folders appear complete or not at all, and nothing of the user's is replaced."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from fewstep.atomic import atomic_folder, atomic_write
from fewstep.errors import FolderError


def make(path: Path, *names: str, mark: str | None = "card") -> None:
    with atomic_folder(path, mark) as partial:
        for name in names or ("card",):
            (partial / name).write_text("ours")


def test_a_writer_that_names_no_errno_is_asked_about_the_disk_before_room_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.save ends in a RuntimeError on a full disk; removing the partial makes room again."""

    def usage(_: Path) -> SimpleNamespace:
        return SimpleNamespace(free=0 if list(tmp_path.glob(".partial-*-model")) else 1 << 30)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(FolderError, match="No space left"), atomic_folder(tmp_path / "model"):
        raise RuntimeError("unexpected pos 775232 vs 775124")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Error while serializing: I/O error: File too large (os error 27)", "File too large"),
        ("[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 598", "File too large"),
    ],
)
def test_errors_of_libraries_about_writing_are_explained(
    tmp_path: Path, text: str, reason: str
) -> None:
    with pytest.raises(FolderError, match=reason), atomic_folder(tmp_path / "model"):
        raise RuntimeError(text)
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_body_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    for error in (RuntimeError("mine"), FileNotFoundError(errno.ENOENT, "mine")):
        with pytest.raises(type(error), match="mine"), atomic_folder(tmp_path / "model"):
            raise error
    assert not list(tmp_path.iterdir())


def test_a_folder_of_fewstep_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    make(tmp_path / "model")
    (tmp_path / "model" / "card").write_text("old")
    make(tmp_path / "model", "card", "more")
    assert (tmp_path / "model" / "card").read_text() == "ours"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("kind", ["foreign", "added", "link", "file", "dangling"])
def test_what_is_not_fewsteps_is_never_replaced(tmp_path: Path, kind: str) -> None:
    path, mine = tmp_path / "model", tmp_path / "mine"
    if kind == "foreign":
        path.mkdir()
        (path / "thesis.txt").write_text("mine")
    elif kind == "added":
        make(path)
        (path / "notes").mkdir()
        (path / "notes" / "thesis.txt").write_text("mine")
    elif kind == "file":
        path.write_text("mine")
    else:
        if kind == "link":
            make(mine)
        path.symlink_to(mine)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(FolderError, match=r"must (be|hold)") as caught:
        make(path)
    assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert not list(tmp_path.glob(".partial-*"))


def test_two_writers_of_one_folder_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    with atomic_folder(path) as first:
        (first / "data").write_text("first")
        with atomic_folder(path) as second:
            (second / "data").write_text("second")
        assert (path / "data").read_text() == "second"
        atomic_write(path.with_name("stamp"), b"x")
        assert (first / "data").is_file()
    assert (path / "data").read_text() == "first"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "stamp"]


def test_what_a_killed_writer_left_is_removed_and_what_it_moved_comes_back(tmp_path: Path) -> None:
    make(tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / ".partial-old-0123abcd-model")
    (tmp_path / ".partial-0123abcd-model").mkdir()
    (tmp_path / ".partial-0123abcd-other-model").mkdir()  # of another path
    (tmp_path / ".partial-0123abcd-stamp").touch()
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model"):
        raise RuntimeError
    assert (tmp_path / "model" / "card").read_text() == "ours"
    atomic_write(tmp_path / "stamp", b"x")
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [".partial-0123abcd-other-model", "model", "stamp"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a /proc")
@pytest.mark.parametrize("name", ["/proc/x", "/proc/x/y"])
def test_a_file_system_that_takes_no_files_is_one_line(name: str) -> None:
    with pytest.raises(FolderError, match="cannot be written: "):
        atomic_write(Path(name), b"x")
    with pytest.raises(FolderError, match="cannot be written: "):
        make(Path(name))


@pytest.mark.parametrize("name", ["file/x", "folder", "a" * 300, "file/folder/x"])
def test_a_path_that_cannot_be_written_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FolderError, match="cannot be written: ") as caught:
        atomic_write(tmp_path / name, b"x")
    assert "\n" not in str(caught.value)
    if name != "folder":
        with pytest.raises(FolderError, match="cannot be written: "):
            make(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
