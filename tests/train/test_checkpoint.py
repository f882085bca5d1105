"""Checkpoints fall back: a damaged one costs a few updates, and never the whole training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.errors import CheckpointError, FewstepWarning
from fewstep.train.checkpoint import (
    Checkpoint,
    begun_run,
    extend_run,
    load_checkpoint,
    save_checkpoint,
)

RUN = {"updates": 30, "lr": 0.1, "fingerprint": "a"}
CPU = torch.device("cpu")


def save(folder: Path, *updates: int, keep: int = 2) -> None:
    for update in updates:
        tensors = {"x": torch.full((3,), float(update))}
        optimizer: dict[str, Any] = {"adamw": {"state": {0: tensors}}}
        save_checkpoint(folder, Checkpoint(update, tensors, tensors, optimizer), RUN, keep)


def loaded(folder: Path) -> int | None:
    found = load_checkpoint(folder, RUN, CPU)
    if found is None:
        return None
    assert torch.equal(found.weights["x"], torch.full((3,), float(found.update)))
    return found.update


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path, 10, 20)
    return tmp_path


DAMAGE: dict[str, Callable[[Path], object]] = {
    "pointer is gone": lambda f: (f / "latest.json").unlink(),
    "pointer is empty": lambda f: (f / "latest.json").write_text(""),
    "pointer is no JSON": lambda f: (f / "latest.json").write_bytes(b"\xff\x00"),
    "pointer is a list": lambda f: (f / "latest.json").write_text("[20]"),
    "pointer points elsewhere": lambda f: (f / "latest.json").write_text('{"update": 77}'),
    "state is gone": lambda f: (f / "00000020" / "state.json").unlink(),
    "state is cut": lambda f: (f / "00000020" / "state.json").write_text('{"update": 20, "ru'),
    "state is empty": lambda f: (f / "00000020" / "state.json").write_text("{}"),
    "weights are gone": lambda f: (f / "00000020" / "weights.safetensors").unlink(),
    "everything is gone": lambda f: [p.unlink() for p in (f / "00000020").iterdir()],
    "folder is gone": lambda f: shutil.rmtree(f / "00000020"),
}
HARMLESS = {"pointer is gone"}
POINTER_ALONE = {k for k in DAMAGE if k.startswith("pointer")}


@pytest.mark.parametrize("how", DAMAGE)
def test_any_damage_to_the_newest_leaves_the_one_before(
    folder: Path, how: str, recwarn: pytest.WarningsRecorder
) -> None:
    DAMAGE[how](folder)
    expected = 20 if how in POINTER_ALONE else 10
    assert loaded(folder) == expected
    lines = [str(w.message) for w in recwarn if issubclass(w.category, FewstepWarning)]
    assert len(lines) == (how not in HARMLESS)
    assert all(f"continues from the checkpoint of update {expected}" in line for line in lines)
    assert begun_run(folder) == RUN
    recwarn.clear()
    save(folder, expected + 10)  # training again over the damaged one
    assert loaded(folder) == expected + 10
    names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    assert names == [f"{expected:08d}", f"{expected + 10:08d}"]
    assert not [w for w in recwarn if issubclass(w.category, FewstepWarning)]


def test_training_never_starts_at_0_beside_checkpoints_that_cannot_be_read(folder: Path) -> None:
    for name in ("00000010", "00000020"):
        (folder / name / "ema.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"00000020/ema.*00000010/ema.*Remove") as caught:
        loaded(folder)
    assert "\n" not in str(caught.value)


def test_a_pointer_that_was_set_back_is_followed(folder: Path) -> None:
    (folder / "latest.json").write_text('{"update": 10}')
    assert loaded(folder) == 10


def test_what_is_no_checkpoint_is_neither_used_nor_removed(tmp_path: Path) -> None:
    mine = tmp_path / "00000099"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    save(tmp_path, 10, 20, 30)
    assert loaded(tmp_path) == 30
    assert (mine / "thesis.txt").read_text() == "mine"
    assert not (tmp_path / "00000010").exists()


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "nowhere", RUN, CPU) is None
    assert begun_run(tmp_path / "nowhere") is None
    assert load_checkpoint(tmp_path, RUN, CPU) is None


def test_another_run_is_refused_by_its_settings_until_it_is_extended(folder: Path) -> None:
    longer = {**RUN, "updates": 60, "fingerprint": "b"}
    with pytest.raises(CheckpointError, match=r"fingerprint, updates\): updates 30 -> 60\."):
        load_checkpoint(folder, longer, CPU)
    with pytest.raises(CheckpointError, match="other data, another parent model"):
        load_checkpoint(folder, {**RUN, "fingerprint": "b"}, CPU)
    extend_run(folder, {"updates": 60, "fingerprint": "b"})
    found = load_checkpoint(folder, longer, CPU)
    assert found is not None
    assert found.update == 20
    state = json.loads((folder / "00000010" / "state.json").read_text())
    assert state["run"] == longer  # the one to fall back to as well
