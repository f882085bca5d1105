"""Checkpoints: whole or not there, checked when read, and only of the run they belong to.

    folder/checkpoints/00000250/  weights.safetensors  ema.safetensors  optimizer.pt  state.json
    folder/checkpoints/latest.json   {"update": 250}

A checkpoint folder is complete when it has its name; the pointer moves after that.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.atomic import PARTIAL, atomic_folder, atomic_write, sha256
from fewstep.errors import CheckpointError

POINTER = "latest.json"
STATE = "state.json"


class Checkpoint(NamedTuple):
    """What a run needs to go on as if it had not stopped: after `update` updates."""

    update: int
    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, run: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint whole, move the pointer to it, and remove all but the newest `keep`.

    run: what the checkpoint belongs to; a resume under another is refused.
    Raises FolderError where the disk is full: nothing half-written is left.
    """
    path = folder / f"{checkpoint.update:08d}"
    with atomic_folder(path, STATE) as partial:
        save_file(_plain(checkpoint.weights), partial / "weights.safetensors")
        save_file(_plain(checkpoint.ema), partial / "ema.safetensors")
        torch.save(checkpoint.optimizer, partial / "optimizer.pt")
        hashes = {p.name: sha256(p) for p in sorted(partial.iterdir())}
        state = {"update": checkpoint.update, "run": run, "sha256": hashes}
        (partial / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    atomic_write(folder / POINTER, json.dumps({"update": checkpoint.update}).encode())
    for old in sorted(p for p in folder.iterdir() if p.is_dir() and p.name.isdigit())[:-keep]:
        shutil.rmtree(old)
    return path


def load_checkpoint(folder: Path, run: dict[str, Any], device: torch.device) -> Checkpoint | None:
    """Return the newest checkpoint, or None where there is none.

    Raises CheckpointError: a file missing, cut short or altered, naming it; or made by another
    run, naming the settings that differ.
    """
    pointer = folder / POINTER
    if not pointer.is_file():
        return None
    for stale in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(stale, ignore_errors=True)
    try:
        path = folder / f"{int(json.loads(pointer.read_text())['update']):08d}"
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        hashes: dict[str, str] = state["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{pointer} or what it points to is damaged ({error}). {_advice(folder)}"
        ) from None
    changed = sorted(k for k in {*state["run"], *run} if state["run"].get(k) != run.get(k))
    if changed:
        shown = ", ".join(f"{k} {state['run'].get(k)!r} -> {run.get(k)!r}" for k in changed[:3])
        raise CheckpointError(
            f"{folder} belongs to a run with other settings: {shown}. Use those settings, another "
            f"folder, or remove {folder}."
        )
    for name, expected in hashes.items():
        if not (path / name).is_file() or sha256(path / name) != expected:
            raise CheckpointError(f"{path / name} is damaged or cut short. {_advice(folder)}")
    try:
        return Checkpoint(
            state["update"],
            load_file(path / "weights.safetensors", device=str(device)),
            load_file(path / "ema.safetensors", device=str(device)),
            torch.load(path / "optimizer.pt", map_location=device, weights_only=True),
        )
    except (SafetensorError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). {_advice(folder)}") from None


def _advice(folder: Path) -> str:
    others = [p.name for p in sorted(folder.iterdir()) if p.is_dir() and p.name.isdigit()][:-1]
    if not others:
        return f"Remove {folder} to start this stage again."
    back = f'{{"update": {int(others[-1])}}}'
    return f"Write {back} into {folder / POINTER} to go back to an older one, or remove {folder}."


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().contiguous() for k, v in tensors.items()}
