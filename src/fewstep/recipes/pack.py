"""Pack a run into a few small files with hashes, to continue it on another machine.

    packed/manifest.json   what was packed: update counts, files, hashes
    packed/part-0, ...     the run's files, one after the other

They hold the resolved recipe, the model folders (with the averaged weights), the logs, and the
newest checkpoint of every stage that has begun. If they fit, the optimiser's state and the
checkpoints of finished stages from which nothing was made are added. Without them, a stage
continues from its weights and its average.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save

from fewstep.atomic import atomic_folder, check_replaceable, sha256, translate_os_errors, write_json
from fewstep.errors import FolderError, RangeError
from fewstep.lock import writer_of
from fewstep.recipes.config import RECIPE, load_recipe
from fewstep.recipes.workspace import TRAINING, Workspace, is_run
from fewstep.train.checkpoint import (
    EMA,
    OPTIMIZER,
    POINTER,
    REST,
    STATE,
    WEIGHTS,
    newest_checkpoint,
    read_checkpoint,
    write_whole,
)

MANIFEST = "manifest.json"
FORMAT = "fewstep packed run 1"
MIB = 1 << 20
PIECE = 1 << 20
WITHOUT, ROUNDED = "without the optimiser's state", "rounded to bf16"


class File(NamedTuple):
    """A file of the run. kind: the group under which a message reports its size."""

    name: str
    path: Path
    kind: str


@dataclass
class Parts:
    """Bytes in files of at most `limit` bytes. Files after the first `most` are counted only."""

    folder: Path
    limit: int
    most: int
    files: list[dict[str, Any]] = field(default_factory=list)
    left: int = 0

    def write(self, data: bytes) -> None:
        """Add bytes at the end."""
        while data:
            if not self.left:
                self.files.append({"name": f"part-{len(self.files)}", "size": 0})
                self.left = self.limit
            piece, data = data[: self.left], data[self.left :]
            self.left -= len(piece)
            self.files[-1]["size"] += len(piece)
            if len(self.files) <= self.most:
                with (self.folder / self.files[-1]["name"]).open("ab") as file:
                    file.write(piece)


def pack_run(
    run: Path,
    folder: Path,
    *,
    optimizer: bool | None = None,
    bf16: bool = False,
    file_size: float = 15.0,
    files: int = 7,
) -> dict[str, Any]:
    """Write what is needed to continue a run into a folder; return its manifest.

    Args:
        run: folder of the run; no other process may be writing to it.
        folder: a new folder, or one that this function wrote.
        optimizer: include the optimiser's state; None includes it where it fits.
        bf16: round float32 to bfloat16, which halves the size.
        file_size: the largest size of a file, in MiB.
        files: the largest number of files, the manifest included.

    Raises FolderError: not a run, nothing made in it yet, another process writes to it, a folder
    that holds something else, or more than fits, with the sizes; RangeError for sizes out of range.
    """
    if not (1 / 1024 <= file_size <= 1 << 20 and 2 <= files <= 100_000):
        raise RangeError(
            "a packed run must have files of 0.001 MiB or more, and at least 2 of them, got "
            f"{files} of {file_size:g} MiB. Pass file_size=15 and files=7, for example."
        )
    if not is_run(run):
        raise FolderError(
            f"{run} must be the folder of a run, with a {RECIPE} that fewstep wrote. Pass the "
            "--out of `fewstep train`, for example."
        )
    with translate_os_errors(folder):
        check_replaceable(folder, MANIFEST)
    workspace = Workspace(load_recipe(str(run)), run)
    limits = (int(file_size * MIB), files - 1)
    with writer_of(run):
        if optimizer is not None:
            return _pack(workspace, folder, optimizer, bf16, limits)
        try:
            return _pack(workspace, folder, True, bf16, limits)
        except _TooLargeError:
            return _pack(workspace, folder, False, bf16, limits)


class _TooLargeError(FolderError):
    """The run does not fit."""


def _pack(
    workspace: Workspace, folder: Path, optimizer: bool, bf16: bool, limits: tuple[int, int]
) -> dict[str, Any]:
    manifest: dict[str, Any] = {"format": FORMAT, "optimizer": optimizer, "bf16": bf16}
    manifest |= {"models": _models(workspace), "files": []}
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch, atomic_folder(folder, MANIFEST) as partial:
        parts = Parts(partial, *limits)
        for file in _files(workspace, optimizer, bf16, Path(scratch)):
            entry: dict[str, Any] = {"name": file.name, "size": 0}
            digest = hashlib.sha256()
            for data in _content(file.path, bf16, entry):
                digest.update(data)
                entry["size"] += len(data)
                parts.write(data)
            manifest["files"].append({**entry, "sha256": digest.hexdigest()})
            sizes[file.kind] = sizes.get(file.kind, 0) + entry["size"]
        if len(parts.files) > parts.most:
            raise _TooLargeError(_too_large(workspace.out, sizes, limits, optimizer, bf16))
        names = {entry["name"] for entry in manifest["files"]}
        states = {n.replace(WEIGHTS, OPTIMIZER) for n in names if Path(n).name == WEIGHTS}
        manifest["optimizer"] = optimizer and states <= names
        manifest["parts"] = [{**p, "sha256": sha256(partial / p["name"])} for p in parts.files]
        write_json(partial / MANIFEST, manifest)
    return manifest


def _too_large(
    run: Path, sizes: dict[str, int], limits: tuple[int, int], optimizer: bool, bf16: bool
) -> str:
    shown = ", ".join(f"{kind} {size / MIB:.1f}" for kind, size in sizes.items() if size)
    advice = [*["--no-optimizer"] * optimizer, *["--bf16"] * (not bf16), "--files", "--file-size"]
    return (
        f"the files of {run} must fit into {limits[1]} files of {limits[0] / MIB:g} MiB and a "
        f"manifest, and they take {sum(sizes.values()) / MIB:.1f} MiB ({shown}). Nothing was "
        f"written: use {', '.join(advice[:-1])} or {advice[-1]}."
    )


def _models(workspace: Workspace) -> dict[str, Any]:
    """Return the state of every model and its updates."""
    found: dict[str, Any] = {}
    for name in workspace.names:
        if workspace.is_done(name):
            updates = workspace.card(name).training.get("updates")
            found[name] = {"state": "finished", "updates": updates}
        elif (path := newest_checkpoint(workspace.checkpoints(name))) is not None:
            found[name] = {"state": "begun", "updates": int(path.name)}
    if not found:
        raise FolderError(
            f"{workspace.out} must hold a model or a checkpoint, and nothing was trained in it "
            "yet. Run `fewstep train` first."
        )
    return found


def _files(workspace: Workspace, optimizer: bool, bf16: bool, scratch: Path) -> Iterator[File]:
    """Yield the files to pack. scratch: an empty folder for those that are made for it."""
    run = workspace.out
    yield File(RECIPE, run / RECIPE, "rest")
    begun = [stage for stage in workspace.plan if _is_begun(workspace, stage.name)]
    parents = {name for stage in begun for name in (stage.parent, stage.teacher)}
    for name in workspace.names:
        done = workspace.is_done(name)
        if done:
            yield from _below(run, run / name, "models")
        for path in (workspace.training(name) / "metrics.jsonl", run / TRAINING / f"{name}.given"):
            if path.is_file():
                yield File(path.relative_to(run).as_posix(), path, "rest")
        newest = newest_checkpoint(workspace.checkpoints(name))
        if newest is None:
            continue
        state = optimizer and any((newest / name).is_file() for name in (OPTIMIZER, REST))
        if not done or (state and name not in parents):
            yield from _of_checkpoint(run, newest, state, bf16, scratch / name)
    if (run / "seconds.json").is_file():
        yield File("seconds.json", run / "seconds.json", "rest")


def _is_begun(workspace: Workspace, name: str) -> bool:
    return workspace.is_done(name) or workspace.has_checkpoint(name)


def _below(run: Path, folder: Path, kind: str) -> Iterator[File]:
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        yield File(path.relative_to(run).as_posix(), path, kind)


def _of_checkpoint(
    run: Path, newest: Path, optimizer: bool, bf16: bool, scratch: Path
) -> Iterator[File]:
    where = newest.relative_to(run).as_posix()
    if optimizer and not bf16:
        for file in _below(run, newest, "checkpoints"):
            kind = "optimiser" if file.path.name == OPTIMIZER else "checkpoints"
            yield file._replace(kind=kind)
    else:
        # In other bytes; its state is completed with their hashes when it is unpacked.
        scratch.mkdir()
        write_whole(read_checkpoint(newest), scratch)
        for name in (WEIGHTS, EMA):
            yield File(f"{where}/{name}", scratch / name, "checkpoints")
        if optimizer:
            yield File(f"{where}/{OPTIMIZER}", scratch / OPTIMIZER, "optimiser")
        state = json.loads((newest / STATE).read_bytes())
        lost = [*state.get("lost", []), *[WITHOUT] * (not optimizer), *[ROUNDED] * bf16]
        kept = {"update": state["update"], "run": state["run"], "sha256": {}}
        kept["lost"] = list(dict.fromkeys(lost))
        write_json(scratch / STATE, kept)
        yield File(f"{where}/{STATE}", scratch / STATE, "rest")
        shutil.rmtree(scratch)
    pointer = newest.parent / POINTER
    # A damaged one stays behind, and the newest checkpoint is found without it.
    with suppress(OSError, ValueError, AttributeError):
        if json.loads(pointer.read_bytes()).get("update") == int(newest.name):
            yield File(pointer.relative_to(run).as_posix(), pointer, "rest")


def _content(path: Path, bf16: bool, entry: dict[str, Any]) -> Iterator[bytes]:
    """Yield the bytes to pack of a file; its entry says what was rounded, and its hash before."""
    if bf16 and path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as held:
            tensors = {k: held.get_tensor(k) for k in held.keys()}  # noqa: SIM118
            metadata = held.metadata()
        entry["rounded"] = [k for k, t in tensors.items() if t.dtype == torch.float32]
        entry["before"] = sha256(path)
        small = {k: t.bfloat16() if k in entry["rounded"] else t for k, t in tensors.items()}
        yield save(small, metadata)
    elif bf16 and path.name == OPTIMIZER:
        entry["rounded"] = ["exp_avg", "exp_avg_sq"]
        yield to_bytes(moments_as(path, torch.float32, torch.bfloat16))
    else:
        with path.open("rb") as file:
            while data := file.read(PIECE):
                yield data


def moments_as(path: Path, before: torch.dtype, after: torch.dtype) -> dict[str, Any]:
    """Return an optimiser's state with its moments in another type."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    for moments in state["adamw"]["state"].values():
        for key, value in moments.items():
            # Moments of 8 bits are in a dict inside, and stay as they are.
            if key != "step" and isinstance(value, torch.Tensor) and value.dtype == before:
                moments[key] = value.to(after)
    return state


def to_bytes(state: dict[str, Any]) -> bytes:
    """Return an optimiser's state as the bytes of its file."""
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()
