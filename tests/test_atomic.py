from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from fewstep.atomic import atomic_folder
from fewstep.errors import FolderError


def test_a_writer_that_names_no_errno_is_asked_about_the_disk_before_room_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.save ends in a RuntimeError on a full disk; removing the partial makes room again."""
    partial = tmp_path / ".partial-model"
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: SimpleNamespace(free=0 if partial.exists() else 1 << 30)
    )
    with pytest.raises(FolderError, match="No space left"), atomic_folder(tmp_path / "model"):
        raise RuntimeError("unexpected pos 775232 vs 775124")
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_body_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="mine"), atomic_folder(tmp_path / "model"):
        raise RuntimeError("mine")
    assert not list(tmp_path.iterdir())
