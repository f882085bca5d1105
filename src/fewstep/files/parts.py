"""The files of a stock pipeline folder: read, named, and copied without anything private."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError, FolderError

INDEX = "model_index.json"
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
CONVERT = (
    'python -c "from diffusers import DiffusionPipeline as P; P.from_pretrained(OLD, '
    'use_safetensors=False).save_pretrained(NEW)"'
)
LONGEST = 200  # characters of a library's message that are shown
_PLACE = re.compile(r"(path|file|dir|folder)$", re.IGNORECASE)  # keys that may hold a path
_PRIVATE = re.compile(r"[/\\~.]|[A-Za-z]:[/\\]|file:")  # how a path on this machine starts
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise what a library raises while it reads a part as a FolderError of one line."""
    try:
        yield
    except FewstepError:
        raise
    except Exception as error:  # noqa: BLE001  a damaged part makes libraries raise anything
        reason = (str(error).strip().splitlines() or [""])[0][:LONGEST]
        kind = "" if reason and isinstance(error, OSError | ValueError) else type(error).__name__
        cause = ": ".join(filter(None, (kind, reason)))
        raise FolderError(
            f"{path} cannot be read ({cause}); the file is damaged or cut short. Copy it again."
        ) from None


def parse_json(path: Path, *, infinities: bool = False) -> Any:
    """Return what a JSON file holds. Raises FolderError: missing, not JSON, or NaN or infinity.

    infinities: accept them, which diffusers writes into the settings of some schedulers.
    """
    constant = _no_nan if infinities else _not_a_number
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=constant)
    except (FileNotFoundError, NotADirectoryError):
        raise FolderError(f"{path} is missing; copy the whole folder again.") from None
    except RecursionError:
        raise FolderError(
            f"{path} is not JSON (nested too deeply); the folder is damaged."
        ) from None
    except OSError as error:
        raise FolderError(f"{path} cannot be read ({error.strerror}). Check its rights.") from None
    except ValueError as error:
        reason = (str(error).strip().splitlines() or [""])[0][:LONGEST]
        raise FolderError(f"{path} is not JSON ({reason}); the folder is damaged.") from None


def read_json(path: Path, *, infinities: bool = False) -> dict[str, Any]:
    """Return the JSON object in a file. Raises FolderError where there is none."""
    found = parse_json(path, infinities=infinities)
    if not isinstance(found, dict):
        raise FolderError(f"{path} holds no JSON object; the folder is damaged.")
    return found


def _no_nan(constant: str) -> float:
    return _not_a_number(constant) if constant == "NaN" else float(constant)


def _not_a_number(constant: str) -> float:
    raise ValueError(f"numbers must be finite, got {constant}")


def components(index: dict[str, Any]) -> dict[str, str]:
    """Return name -> class of the parts that a `model_index.json` says are there."""
    return {
        name: str(entry[1])
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and entry[1] is not None
    }


def size_of(config: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """Return (height, width) of a network's states, from the `sample_size` in its config.

    Raises FolderError unless it is one whole number above 0, or two.
    """
    size = config.get("sample_size")
    pair = size if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(is_count(n) for n in pair):
        raise FolderError(
            f"{path}: sample_size must be one whole number above 0, or two, got {size!r}. The "
            "folder is damaged: copy it again."
        )
    return pair[0], pair[1]


def vae_factor(folder: Path) -> int:
    """Return how many pixels high and wide one latent is, from `vae/config.json`."""
    path = folder / "vae" / "config.json"
    config = read_json(path)
    halvings = config.get("temperal_downsample")  # of an autoencoder of videos
    if isinstance(halvings, list):
        return int(2 ** len(halvings))
    # The second of a deep-compression autoencoder, whose encoder and decoder differ.
    levels = config.get("block_out_channels", config.get("encoder_block_out_channels"))
    if not isinstance(levels, list) or not 1 <= len(levels) <= 10:
        raise FolderError(
            f"{path}: block_out_channels must be a list of 1 to 10 numbers, got {levels!r}. The "
            "folder is damaged: copy it again."
        )
    return int(2 ** (len(levels) - 1))


def is_count(number: Any, most: float = 10**6) -> bool:
    """Whether it is a whole number from 1 to `most`."""
    return isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= most


def is_number(number: Any) -> bool:
    """Whether it is a finite number, and not a boolean."""
    real = isinstance(number, int | float) and not isinstance(number, bool)
    return real and abs(number) < 1e300 and math.isfinite(number)


def without_paths(data: Any) -> Any:
    """Return settings without the paths of the machine on which they were written.

    Where a part was loaded from (`_name_or_path`, `tokenizer_file` and others) is left out, unless
    it is the id of a hub's model.
    """
    if isinstance(data, dict):
        return {k: without_paths(v) for k, v in data.items() if not _is_private(k, v)}
    return [without_paths(v) for v in data] if isinstance(data, list) else data


def _is_private(key: str, value: Any) -> bool:
    if not isinstance(value, str) or not value or not _PLACE.search(key):
        return False
    return bool(_PRIVATE.match(value)) or not _HUB_ID.fullmatch(value)
