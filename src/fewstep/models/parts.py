"""The parts of a stock pipeline folder: which are there, whether they are safe to read."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fewstep.errors import FolderError

INDEX = "model_index.json"
WEIGHTS = ("diffusion_pytorch_model", "model")
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")
_CONVERT = (
    'python -c "from diffusers import DiffusionPipeline as P; P.from_pretrained(OLD, '
    'use_safetensors=False).save_pretrained(NEW)"'
)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say in one line, as a FolderError, what a library says of a part that it cannot read."""
    try:
        yield
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FolderError(
            f"{path} cannot be read ({reason}); the file is damaged or cut short. Copy it again."
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises FolderError where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FolderError(f"{path} is missing; copy the whole folder again.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FolderError(f"{path} is not JSON ({error}); the folder is damaged.") from None
    if not isinstance(found, dict):
        raise FolderError(f"{path} holds no JSON object; the folder is damaged.")
    return found


def components(index: dict[str, Any]) -> dict[str, str]:
    """Return name -> class of the parts that a `model_index.json` says are there."""
    return {
        name: str(told[1])
        for name, told in index.items()
        if isinstance(told, list) and len(told) == 2 and told[1] is not None
    }


def check_weights(path: Path) -> None:
    """Raise FolderError unless the part at `path` has its weights as safetensors."""
    if not (path / "config.json").is_file():
        raise FolderError(f"{path / 'config.json'} is missing; copy the whole folder again.")
    for stem in WEIGHTS:
        if any((path / f"{stem}.safetensors{end}").is_file() for end in ("", ".index.json")):
            return
    files = sorted(p.name for p in path.iterdir())
    variants = [name for name in files if name.endswith(".safetensors")]
    pickled = [name for name in files if name.endswith(_PICKLED)]
    if variants:
        raise FolderError(
            f"{path} has its weights only as {variants[0]}; fewstep reads the unnamed variant. "
            f"Rename it to {variants[0].split('.')[0]}.safetensors."
        )
    if pickled:
        raise FolderError(
            f"{path / pickled[0]} is a pickle, which can run any code when it is opened; fewstep "
            f"reads safetensors alone. If you trust it, convert the folder: {_CONVERT}"
        )
    names = " or ".join(f"{stem}.safetensors" for stem in WEIGHTS)
    raise FolderError(f"{path} has no weights ({names}); copy the whole folder again.")


def copy_part(source: Path, target: Path, part: str) -> None:
    """Copy a part of a folder into another one, byte for byte. Raises FolderError."""
    path = source / part
    if not path.is_dir():
        raise FolderError(f"{path} is missing; copy the whole folder again.")
    (target / part).mkdir()
    for file in stock_files(path):
        shutil.copyfile(file, target / part / file.name)


def stock_files(path: Path) -> list[Path]:
    """Return the files of a part that a stock pipeline needs: settings, words, safe weights."""
    return sorted(p for p in path.iterdir() if p.is_file() and _needed(p.name))


def _needed(name: str) -> bool:
    stem, dot, ending = name.partition(".")
    if ending.endswith("safetensors") or ".index." in f".{ending}":
        # A second dot is a variant, such as model.fp16.safetensors.
        return ending in ("safetensors", "safetensors.index.json")
    return bool(stem and dot) and ending in ("json", "txt", "model", "jinja")
