"""Copies of the parts of a pipeline folder, for the folder of a student."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fewstep.errors import FolderError
from fewstep.files.parts import PICKLED, components, parse_json, reading, without_paths
from fewstep.files.weights import STEMS, file_sha256, find_weights

# Parts of stock pipelines that fewstep never runs: copied where they are there and safe to open.
NEVER_RUN = ("safety_checker", "feature_extractor", "image_encoder")
_SAFE = ("json", "txt", "model", "jinja")
_CONFIG = "config.json"  # a part with one has weights; a tokenizer has tokenizer_config.json
_LISTS = ("tokenizer.json", "vocab.json", "merges.txt")  # words, in which nothing is a path


def part_files(path: Path) -> dict[Path, str]:
    """Return the files of a part that a copy needs -> the names that they get there.

    Settings, words and safetensors. Pickles, code and other variants of the weights stay behind;
    a variant that is the only one loses its name. Raises FolderError for weights that cannot be
    used.
    """
    files = {p: p.name for p in sorted(path.iterdir()) if p.is_file() and _needed(p.name)}
    if _has_weights(path):
        weights = find_weights(path)
        if weights.variant is not None:
            files.update(weights.plain_names())
            if weights.index is not None:
                files[weights.index] = f"{weights.stem}.safetensors.index.json"
    return dict(sorted(files.items()))


def copy_part(source: Path, target: Path, part: str) -> None:
    """Copy a part of a folder into another one. Raises FolderError.

    Files are copied byte for byte, but for settings that hold a path of this machine.
    """
    path = source / part
    if not path.is_dir():
        raise FolderError(f"{path} is missing; copy the whole folder again.")
    (target / part).mkdir()
    index = find_weights(path).plain_index() if _has_weights(path) else None
    for file, name in part_files(path).items():
        place = target / part / name
        if index is not None and name.endswith(".index.json"):
            write_json(place, index)
        else:
            shutil.copyfile(file, place)
            if _is_settings(name):
                remove_paths(place)


def copied_sha256(file: Path) -> str:
    """Return the hash of the copy that `copy_part` makes of a file."""
    if _is_settings(file.name):
        before = parse_json(file)
        after = without_paths(before)
        if after != before:
            return hashlib.sha256(_text(after).encode()).hexdigest()
    return file_sha256(file)


def _is_settings(name: str) -> bool:
    return name.endswith(".json") and name not in _LISTS


def licence_files(folder: Path) -> list[Path]:
    """Return the licence files of a model folder."""
    return sorted(folder.glob("LICEN[SC]E*"))


def copy_licences(source: Path, target: Path) -> None:
    """Copy the licence files of a model folder into another one."""
    for file in licence_files(source):
        shutil.copyfile(file, target / file.name)


def copied_index(source: Path, index: dict[str, Any], required: Iterable[str]) -> dict[str, Any]:
    """Return the `model_index.json` of a copy, in which parts that are not copied are null.

    required: the parts that are there in any case. Others are kept only where they are of the
    kinds that stock pipelines know (`NEVER_RUN`), are in the folder, and hold no pickle alone.
    """
    kept: dict[str, Any] = without_paths(index)
    for part in NEVER_RUN:
        if part in kept and kept[part] is None:
            kept[part] = [None, None]
    for part in components(index):
        if part in (*required, "scheduler"):
            continue
        if part in NEVER_RUN:
            if not _is_safe(source / part):
                kept[part] = [None, None]
        else:
            del kept[part]
    # A stock pipeline refuses a safety checker without the part that feeds it.
    if "safety_checker" in kept and kept.get("feature_extractor") in (None, [None, None]):
        kept["safety_checker"] = [None, None]
    if kept.get("safety_checker") == [None, None] and "requires_safety_checker" in kept:
        kept["requires_safety_checker"] = False
    return kept


def remove_paths(file: Path) -> None:
    """Take the paths of this machine out of a JSON file of settings; others stay as they are."""
    before = parse_json(file)
    after = without_paths(before)
    if after != before:
        write_json(file, after)


def write_json(path: Path, data: Any) -> None:
    """Write an object as JSON, indented."""
    path.write_text(_text(data), encoding="utf-8")


def _text(data: Any) -> str:
    return json.dumps(data, indent=2) + "\n"


def _has_weights(path: Path) -> bool:
    names = [p.name for p in path.iterdir()]
    return _CONFIG in names and any(n.startswith(STEMS) and ".safetensors" in n for n in names)


def _is_safe(path: Path) -> bool:
    if not path.is_dir():
        return False
    names = [p.name for p in path.iterdir() if p.is_file()]
    if not any(name.endswith(PICKLED) for name in names):
        return any(map(_needed, names))
    try:
        with reading(path):
            find_weights(path)
    except FolderError:
        return False
    return True


def _needed(name: str) -> bool:
    stem, dot, ending = name.partition(".")
    if ending.endswith("safetensors") or ".index." in f".{ending}":
        # A second dot is a variant, such as model.fp16.safetensors.
        return ending in ("safetensors", "safetensors.index.json")
    return bool(stem and dot) and ending in _SAFE
