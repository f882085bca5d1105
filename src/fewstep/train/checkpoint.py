"""Checkpoints: written completely or not at all, and checked when they are read.

    folder/checkpoints/00000250/  weights.safetensors  ema.safetensors  optimizer.pt  state.json
    folder/checkpoints/latest.json   {"update": 250}

A sharded run has shard-*.safetensors, a file of each process, and rest.pt in place of the three.

A checkpoint folder is complete when it has its name; the pointer moves after that. Where the newest
checkpoint is damaged, the one before it is used.
"""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Callable, Container
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.atomic import PARTIAL, atomic_folder, atomic_write, sha256
from fewstep.errors import CheckpointError, FewstepWarning
from fewstep.train.shards import SHARD, put_back, read_shards, take_out, write_shards

POINTER = "latest.json"
STATE = "state.json"
WEIGHTS = "weights.safetensors"
EMA = "ema.safetensors"
OPTIMIZER = "optimizer.pt"
REST = "rest.pt"  # what is not sharded of a checkpoint in shards


class _DamagedError(Exception):
    """A checkpoint cannot be read; the text names the file."""


class Checkpoint(NamedTuple):
    """Everything that a run needs to resume exactly, after `update` updates.

    optimizer: empty where the checkpoint was unpacked without the optimiser's state.
    """

    update: int
    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Any]

    def with_names(self, names: Container[str]) -> Checkpoint:
        """Return it for a student of these names; a model's network was called `unet` once."""

        def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
            now = {k: "network." + k.removeprefix("unet.") for k in state if k not in names}
            return {now[k] if now.get(k, "") in names else k: t for k, t in state.items()}

        return self._replace(weights=renamed(self.weights), ema=renamed(self.ema))


def save_sharded(
    folder: Path, checkpoint: Checkpoint, run: dict[str, Any], keep: int, *, first: bool
) -> None:
    """Write a checkpoint of sharded tensors as `save_checkpoint` does; each process its own part.

    Every process must call this; the folder must be the same for all.
    first: whether this process is the one that names the folder and completes the checkpoint.
    """
    rest = checkpoint._asdict()
    found = take_out(rest)
    names = {"/".join(map(str, keys)): keys for keys in found}
    tensors = {name: found[keys] for name, keys in names.items()}

    def write(partial: Path) -> None:
        write_shards(partial, tensors)
        torch.save({**rest, "names": names}, partial / REST)

    if first:
        save_checkpoint(folder, checkpoint, run, keep, write)
    else:
        write_shards(None, tensors)


def write_whole(checkpoint: Checkpoint, partial: Path) -> None:
    """Write the three files of a checkpoint that is not sharded."""
    save_file(_plain(checkpoint.weights), partial / WEIGHTS)
    save_file(_plain(checkpoint.ema), partial / EMA)
    torch.save(checkpoint.optimizer, partial / OPTIMIZER)


def save_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    run: dict[str, Any],
    keep: int,
    write: Callable[[Path], None] | None = None,
) -> Path:
    """Write a checkpoint, move the pointer to it, and remove all but the newest `keep`.

    Checkpoints of later updates, which an earlier run left and which could not be read, are
    removed too.

    run: what the checkpoint belongs to; a resume under another is refused.
    write: writes the files into a folder; by default `write_whole`.
    Raises FolderError where the disk is full: nothing half-written is left.
    """
    path = folder / f"{checkpoint.update:08d}"
    if path in _checkpoints(folder) and not (path / STATE).is_file():
        shutil.rmtree(path)  # a damaged one of the same update
    with atomic_folder(path, STATE) as partial:
        if write is None:
            write_whole(checkpoint, partial)
        else:
            write(partial)
        hashes = {p.name: sha256(p) for p in sorted(partial.iterdir())}
        state = {"update": checkpoint.update, "run": run, "sha256": hashes}
        (partial / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    atomic_write(folder / POINTER, json.dumps({"update": checkpoint.update}).encode())
    found = _checkpoints(folder)
    place = found.index(path) + 1
    for old in (*found[: max(0, place - keep)], *found[place:]):
        shutil.rmtree(old)
    return path


def load_checkpoint(folder: Path, run: dict[str, Any], device: torch.device) -> Checkpoint | None:
    """Return the newest checkpoint that can be read, or None where there is none at all.

    A damaged checkpoint is named in a FewstepWarning, and the one before it is used. The pointer
    says where to begin; without it the newest is used.

    Raises CheckpointError: none of the checkpoints can be read, or the newest belongs to another
    run, naming the settings that differ.
    """
    for stale in folder.glob(f"{PARTIAL}*"):
        if stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)
    damage: list[str] = []
    for path in _candidates(folder, damage):
        try:
            state = _read_state(path)
            _check_run(folder, state["run"], run)
            found = _read(path, state, device)
        except _DamagedError as error:
            damage.append(str(error))
            continue
        if damage:
            warnings.warn(
                f"{'; '.join(damage)}. Training continues from the checkpoint of update "
                f"{found.update}.",
                FewstepWarning,
                stacklevel=2,
            )
        if lost := state.get("lost"):
            warnings.warn(
                f"training continues at update {found.update} from a packed run "
                f"({', '.join(lost)}), so it ends with other weights than without packing.",
                FewstepWarning,
                stacklevel=2,
            )
        return found
    if damage:
        raise CheckpointError(
            f"training can only continue from a whole checkpoint, and there is none in {folder}: "
            f"{'; '.join(damage)}. Remove {folder} to start this stage again."
        )
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Return one checkpoint, whole, on the CPU. Raises CheckpointError where it is damaged."""
    try:
        return _read(path, _read_state(path), torch.device("cpu"))
    except _DamagedError as error:
        raise CheckpointError(f"{error}. Remove {path} to use the one before it.") from None


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the folder of the newest checkpoint that is whole, or None."""
    for path in _candidates(folder, []):
        with suppress(_DamagedError):
            _check_files(path, _read_state(path))
            return path
    return None


def begun_run(folder: Path) -> dict[str, Any] | None:
    """Return what the newest readable checkpoint belongs to, or None where there is none."""
    for path in _candidates(folder, []):
        try:
            found: dict[str, Any] = _read_state(path)["run"]
        except _DamagedError:
            continue
        return found
    return None


def extend_run(folder: Path, changes: dict[str, Any]) -> None:
    """Let a run of other settings continue from these checkpoints, for example of more updates.

    changes: keys of what the checkpoints belong to, with their new values. Keys that a checkpoint
        does not have are not added.
    """
    for path in _candidates(folder, []):
        with suppress(_DamagedError):
            state = _read_state(path)
            state["run"] |= {k: v for k, v in changes.items() if k in state["run"]}
            atomic_write(path / STATE, json.dumps(state, indent=1).encode())


def _candidates(folder: Path, damage: list[str]) -> list[Path]:
    """Return the checkpoints to try, best first; a pointer that is wrong is added to `damage`."""
    found = _checkpoints(folder)
    pointer = folder / POINTER
    if not pointer.is_file():
        return found[::-1]
    try:
        first = folder / f"{int(json.loads(pointer.read_bytes())['update']):08d}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        damage.append(f"{pointer} is damaged ({_brief(error)})")
        return found[::-1]
    if first not in found:
        damage.append(f"{first} is missing")
        return found[::-1]
    return found[found.index(first) :: -1] + found[: found.index(first) : -1]


def _checkpoints(folder: Path) -> list[Path]:
    """Return the folders that are checkpoints, whole or damaged, oldest first."""
    if not folder.is_dir():
        return []
    names = {STATE, WEIGHTS, EMA, OPTIMIZER, REST}
    return sorted(
        (
            p
            for p in folder.iterdir()
            if p.name.isdecimal()
            and p.is_dir()
            and all(f.name in names or SHARD.fullmatch(f.name) for f in p.iterdir())
        ),
        key=lambda p: int(p.name),
    )


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / STATE).read_bytes())
        whole = isinstance(state["run"], dict) and isinstance(state["update"], int)
        hashes = state["sha256"]
        lost = state.get("lost", [])
        if not isinstance(lost, list) or not all(isinstance(what, str) for what in lost):
            raise ValueError("lost is no list")
        needed = {WEIGHTS, EMA} if "lost" in state else {WEIGHTS, EMA, OPTIMIZER}
        if not whole or not (needed <= set(hashes) or REST in hashes):
            raise ValueError("keys are missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _DamagedError(f"{path / STATE} is damaged ({_brief(error)})") from None
    return dict(state)


def _check_run(folder: Path, made: dict[str, Any], run: dict[str, Any]) -> None:
    # A packed run that was rounded has parents of other hashes, and so no fingerprint.
    keys = {*made, *run} - ({"fingerprint"} - made.keys())
    changed = sorted(k for k in keys if made.get(k) != run.get(k))
    if changed:
        named = [f"{k} {made.get(k)!r} -> {run.get(k)!r}" for k in changed if k != "fingerprint"]
        shown = ", ".join(named[:3]) or "other data, another parent model, or another network"
        raise CheckpointError(
            f"the checkpoints in {folder} must be of a run with these settings, and they belong to "
            f"a run with others ({', '.join(changed[:3])}): {shown}. Restore those settings, use "
            f"another folder, or remove {folder}."
        )


def _check_files(path: Path, state: dict[str, Any]) -> None:
    for name, expected in state["sha256"].items():
        if not (path / name).is_file() or sha256(path / name) != expected:
            raise _DamagedError(f"{path / name} is missing, damaged or cut short")


def _read(path: Path, state: dict[str, Any], device: torch.device) -> Checkpoint:
    _check_files(path, state)
    try:
        if REST in state["sha256"]:
            return _read_sharded(path, device)
        return Checkpoint(
            state["update"],
            load_file(path / WEIGHTS, device=str(device)),
            load_file(path / EMA, device=str(device)),
            torch.load(path / OPTIMIZER, map_location=device, weights_only=True)
            if OPTIMIZER in state["sha256"]
            else {},
        )
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, LookupError) as error:
        raise _DamagedError(f"{path} cannot be read ({_brief(error)})") from None


def _read_sharded(path: Path, device: torch.device) -> Checkpoint:
    rest = torch.load(path / REST, map_location=device, weights_only=True)
    names = rest.pop("names")
    put_back(rest, {names[name]: t.to(device) for name, t in read_shards(path).items()})
    return Checkpoint(**rest)


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())[:120]
    return f"{type(error).__name__}: {text}" if isinstance(error, KeyError) else text


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().contiguous() for k, v in tensors.items()}
