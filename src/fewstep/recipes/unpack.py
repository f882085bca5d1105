"""Restore a packed run after checking all its hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from safetensors import safe_open
from safetensors.torch import save

from fewstep.atomic import atomic_folder, sha256, translate_os_errors, write_json
from fewstep.distill.plan import TEACHER
from fewstep.errors import FolderError
from fewstep.folders.readme import README
from fewstep.models.card import CARD
from fewstep.recipes.pack import FORMAT, MANIFEST, PIECE, ROUNDED, moments_as, to_bytes
from fewstep.recipes.workspace import TRAINING
from fewstep.train.checkpoint import OPTIMIZER, STATE


class _Piece(BaseModel):
    name: str
    size: int = Field(ge=0)
    sha256: str
    rounded: list[str] = []
    before: str | None = None


class _Manifest(BaseModel):
    format: Literal[FORMAT]  # type: ignore[valid-type]
    optimizer: bool
    bf16: bool
    models: dict[str, dict[str, Any]]
    files: list[_Piece]
    parts: list[_Piece]


def unpack_run(folder: Path, run: Path) -> dict[str, Any]:
    """Restore a packed run into a new folder; return the manifest.

    All hashes are checked first. Weights that were rounded are float32 again, and the cards of the
    models have their hashes.

    Raises FolderError: not a packed run, a part that is missing or damaged, or a run that exists.
    """
    manifest = _checked(folder)
    with translate_os_errors(run):
        if run.is_symlink() or (run.exists() and (not run.is_dir() or any(run.iterdir()))):
            raise FolderError(
                f"{run} must not exist yet, and it does. A run is never unpacked over another one: "
                "use another --out."
            )
    with atomic_folder(run) as partial:
        _restore(folder, manifest, partial)
        if manifest["bf16"]:
            _restore_floats(manifest, partial)
        for path in partial.glob(f"{TRAINING}/*/checkpoints/*/{STATE}"):
            _complete(path, manifest["bf16"])
    return manifest


def _checked(folder: Path) -> dict[str, Any]:
    """Return the manifest, after checking it and the hash of every part."""
    path = folder / MANIFEST
    try:
        manifest = _Manifest.model_validate_json(path.read_bytes()).model_dump()
        total, packed = (sum(entry["size"] for entry in manifest[k]) for k in ("files", "parts"))
        names = [entry["name"] for entry in (*manifest["files"], *manifest["parts"])]
        if total != packed or not all(map(_is_inside, (*names, *manifest["models"]))):
            raise ValueError("files that cannot be")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FolderError(
            f"{folder} must be a folder that `fewstep pack` wrote, and its {MANIFEST} cannot be "
            f"read ({str(reason)[:80]}). Copy the whole folder again."
        ) from None
    for part in manifest["parts"]:
        file = folder / part["name"]
        if (
            not file.is_file()
            or file.stat().st_size != part["size"]
            or sha256(file) != part["sha256"]
        ):
            raise FolderError(
                f"{file} must be as `fewstep pack` wrote it, and it is missing, damaged or cut "
                "short. Copy it again."
            )
    return manifest


def _is_inside(name: str) -> bool:
    """Whether a name is that of a file inside the folder, in the form that `pack_run` writes."""
    path = PurePosixPath(name)
    plain = path.as_posix() == name and not path.is_absolute() and "\\" not in name
    return plain and bool(path.parts) and ".." not in path.parts


def _restore(folder: Path, manifest: dict[str, Any], run: Path) -> None:
    """Write the files of the run, and check each of them."""
    stream = _read(folder / part["name"] for part in manifest["parts"])
    held = b""
    for entry in manifest["files"]:
        path, left, digest = run / entry["name"], entry["size"], hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            while left:
                held = held or next(stream)
                data, held = held[:left], held[left:]
                left -= len(data)
                digest.update(data)
                file.write(data)
        if digest.hexdigest() != entry["sha256"]:
            raise FolderError(
                f"{folder} is damaged at {entry['name']}. Copy the whole folder again."
            )


def _read(paths: Iterable[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while data := file.read(PIECE):
                yield data


def _restore_floats(manifest: dict[str, Any], run: Path) -> None:
    """Widen what was rounded, and put the hashes of the new files in place of the old ones."""
    hashes: dict[str, str] = {}
    for entry in manifest["files"]:
        path, rounded = run / entry["name"], set(entry["rounded"])
        if path.name == OPTIMIZER and rounded:
            path.write_bytes(to_bytes(moments_as(path, torch.bfloat16, torch.float32)))
        elif entry["before"] is not None:
            with safe_open(path, framework="pt") as held:
                tensors = {k: held.get_tensor(k) for k in held.keys()}  # noqa: SIM118
                metadata = held.metadata()
            wide = {k: t.float() if k in rounded else t for k, t in tensors.items()}
            path.write_bytes(save(wide, metadata))
            hashes[entry["before"]] = sha256(path)
    for name in manifest["models"]:
        card = run / name / CARD
        if not card.is_file():
            continue
        for path in filter(Path.is_file, (card, run / name / README)):
            text = path.read_text(encoding="utf-8")
            for old, new in hashes.items():
                text = text.replace(old, new)
            path.write_text(text, encoding="utf-8")
        known = json.loads(card.read_text(encoding="utf-8"))
        known["training"]["weights"] = ROUNDED
        write_json(card, known)


def _complete(path: Path, bf16: bool) -> None:
    """Write the hashes of a changed checkpoint's files into its state."""
    state = json.loads(path.read_bytes())
    if "lost" not in state:
        return
    files = sorted(p for p in path.parent.iterdir() if p.name != STATE)
    state["sha256"] = {p.name: sha256(p) for p in files}
    if bf16 and path.parents[2].name != TEACHER:
        # It holds the hash of the parent before it was rounded.
        state["run"].pop("fingerprint", None)
    write_json(path, state)
