"""The safetensors files of one part of a model folder: found, hashed, loaded and checked.

Networks, text encoders and autoencoders all load through `load_part`, so that a file with a
missing, unexpected, misshapen, non-float or non-finite tensor is refused by the tensor's name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.atomic import sha256
from fewstep.errors import FolderError, NonFiniteError
from fewstep.files.parts import CONVERT, PICKLED, read_json, reading
from fewstep.files.settings import check_settings

STEMS = ("diffusion_pytorch_model", "model")  # as diffusers and transformers name their files
FLOATS = ("F16", "BF16", "F32", "F64")
MAX_HEADER = 100 * 1024 * 1024  # bytes; the limit of the safetensors library
SETTLED = 1.0  # seconds; a younger file may change again without a change of its time stamp
SHOWN = 3  # names in an error message

_SHARD = r"-\d{5,}-of-\d{5,}"
_NAME = re.compile(
    rf"(?P<stem>{'|'.join(STEMS)})(?P<one>{_SHARD})?(\.(?P<variant>[\w-]+?))?(?P<two>{_SHARD})?"
    r"\.safetensors"
)
_INDEX = re.compile(
    rf"(?P<stem>{'|'.join(STEMS)})\.safetensors(\.(?P<old>[\w-]+))?\.index(\.(?P<variant>[\w-]+))?"
    r"\.json"
)
_SHAPE = re.compile(
    r"because (\S+) expected shape torch\.Size\(\[(.*?)\]\), but got torch\.Size\(\[(.*?)\]\)"
)
_hashes: dict[tuple[str, int, int, int, int], str] = {}


@dataclass(frozen=True)
class Weights:
    """The files that hold one part's weights.

    Attributes:
        stem: "diffusion_pytorch_model" or "model".
        variant: "fp16", for example; None for the unnamed files, which are preferred.
        index: the file that says which shard holds which tensor; None for a single file.
        files: one file, or the shards in the order of their names.
    """

    stem: str
    variant: str | None
    index: Path | None
    files: tuple[Path, ...]

    def plain_names(self) -> dict[Path, str]:
        """Return the name of each file, index included, once the variant is taken out of it."""
        return {path: self._plain(path.name) for path in self.files}

    def plain_index(self) -> dict[str, Any] | None:
        """Return the index with the shards' names without the variant; None for a single file."""
        if self.index is None:
            return None
        data = read_json(self.index)
        shards = {key: self._plain(name) for key, name in data["weight_map"].items()}
        return {**data, "weight_map": shards}

    def _plain(self, name: str) -> str:
        found = _NAME.fullmatch(name)
        shard = (found["one"] or found["two"] or "") if found else ""
        return f"{self.stem}{shard}.safetensors"


def find_weights(path: Path) -> Weights:
    """Return the weights of the part in folder `path`.

    Unnamed files are preferred; a variant, such as fp16, is taken where it is the only one. Raises
    FolderError: no safetensors, pickles alone, several variants and no unnamed files, both one
    file and shards, or a shard that is missing.
    """
    if not (path / "config.json").is_file():
        raise FolderError(f"{path / 'config.json'} is missing; copy the whole folder again.")
    names = sorted(p.name for p in path.iterdir() if p.is_file())
    single = {_key(m): path / m.string for m in map(_NAME.fullmatch, names) if m and not _shard(m)}
    indexed = {
        (m["stem"], m["variant"] or m["old"]): path / m.string
        for m in map(_INDEX.fullmatch, names)
        if m
    }
    sets = sorted({*single, *indexed}, key=lambda k: (k[1] is not None, str(k)))
    plain = [key for key in sets if key[1] is None]
    if not sets:
        raise _no_weights(path, names)
    if len(plain or sets) > 1 or (sets[0] in single and sets[0] in indexed):
        both = [p.name for k in (plain or sets) for p in (single.get(k), indexed.get(k)) if p]
        raise FolderError(
            f"{path} must hold one set of weights, got several: {', '.join(both)}. Keep the one "
            "that you want and move the others away."
        )
    stem, variant = sets[0]
    if sets[0] in single:
        return Weights(stem, variant, None, (single[sets[0]],))
    index = indexed[sets[0]]
    return Weights(stem, variant, index, _shards(index))


def part_sha256(path: Path) -> str:
    """Return the hash of a part's weights: of the file, or of the shards' hashes.

    Files are read once per process; see `file_sha256`. Raises FolderError as `find_weights` does.
    """
    hashes = [file_sha256(file) for file in find_weights(path).files]
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the hash of a file's bytes, remembered until its size, inode or time stamps change."""
    with reading(path):
        stat = path.stat()
        key = (
            os.path.realpath(path),
            stat.st_ino,
            stat.st_size,
            stat.st_mtime_ns,
            stat.st_ctime_ns,
        )
        if key not in _hashes:
            digest = sha256(path)
            if time.time() - max(stat.st_mtime, stat.st_ctime) < SETTLED:
                return digest
            _hashes[key] = digest
    return _hashes[key]


def load_part(kind: Any, path: Path, *, extra: Iterable[str] = (), **options: Any) -> Any:
    """Return the module of class `kind` in folder `path`, in float32, with its weights checked.

    Args:
        kind: a class of diffusers or transformers that has `from_pretrained`.
        path: the part's folder.
        extra: names of tensors that the file may hold beside those of the module.
        options: more arguments of `from_pretrained`.

    Raises:
        FolderError: no weights, a damaged file, or a tensor that is missing, unexpected,
            misshapen, not a float or not finite.
    """
    weights = find_weights(path)
    check_settings(kind, path / "config.json")
    _check_headers(weights)
    if hasattr(kind, "load_config"):
        options = {"torch_dtype": torch.float32, **options}
    else:
        options = {"dtype": torch.float32, **options}
    # Some networks draw weights before they read them; the caller's generator is left alone.
    with torch.random.fork_rng(devices=[]), reading(path), quietly(), _shapes_named(path):
        module, report = kind.from_pretrained(
            path,
            use_safetensors=True,
            local_files_only=True,
            variant=weights.variant,
            output_loading_info=True,
            ignore_mismatched_sizes=not hasattr(kind, "load_config"),
            **options,
        )
    _check_report(report, path, set(extra))
    check_finite_weights(module, str(path))
    return module


@contextlib.contextmanager
def _shapes_named(path: Path) -> Iterator[None]:
    """Raise what diffusers says of a tensor's shape in our own words."""
    try:
        yield
    except ValueError as error:
        found = _SHAPE.search(str(error))
        if found is None:
            raise
        name, right, given = found.groups()
        raise _wrong_shapes(path, [f"{name} of shape [{given}], not [{right}]"]) from None


def _wrong_shapes(path: Path, wrong: Sequence[str]) -> FolderError:
    return FolderError(
        f"{path}: the weights must have the shapes that config.json describes, got "
        f"{_some(wrong, ', ')}. Copy the whole folder again."
    )


def check_finite_weights(module: nn.Module, where: str) -> None:
    """Raise NonFiniteError unless every float tensor of the module is finite; name the first."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
                continue
            if tensor.numel() == 0 or tensor.device.type == "meta":
                continue
            # The extremes carry NaN and infinity with them, and cost one pass over the memory.
            low, high = torch.aminmax(tensor)
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                bad = int((~torch.isfinite(tensor)).sum())
                raise NonFiniteError(
                    f"{where}: the weights must be finite, got {bad} of {tensor.numel()} values of "
                    f"{name} that are NaN or infinite. Use an earlier checkpoint, or copy the "
                    "weights again."
                )


def _key(found: re.Match[str]) -> tuple[str, str | None]:
    return found["stem"], found["variant"]


def _shard(found: re.Match[str]) -> bool:
    return bool(found["one"] or found["two"])


def _shards(index: Path) -> tuple[Path, ...]:
    listed = read_json(index).get("weight_map")
    known = isinstance(listed, dict) and all(isinstance(name, str) for name in listed.values())
    names = sorted(set(listed.values())) if known and listed else []
    if not names:
        raise FolderError(f"{index} has no weight_map of names; copy the whole folder again.")
    for name in names:
        if name != os.path.basename(name) or not _NAME.fullmatch(name):
            raise FolderError(
                f"{index} must name files beside it, got {name!r}. Copy the whole folder again."
            )
        if not (index.parent / name).is_file():
            raise FolderError(
                f"{index.parent / name} is missing and {index.name} names it; copy the whole "
                "folder again."
            )
    return tuple(index.parent / name for name in names)


def _no_weights(path: Path, names: Sequence[str]) -> FolderError:
    pickled = [name for name in names if name.endswith(PICKLED)]
    if pickled:
        return FolderError(
            f"{path / pickled[0]} is a pickle, which can run any code when it is opened; fewstep "
            f"reads safetensors alone. If you trust it, convert the folder: {CONVERT}"
        )
    wanted = " or ".join(f"{stem}.safetensors" for stem in STEMS)
    return FolderError(f"{path} has no weights ({wanted}); copy the whole folder again.")


def _header(file: Path) -> dict[str, Any]:
    """Return a safetensors file's header: name -> dtype and shape."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > MAX_HEADER:
                raise ValueError(f"a header of {length} bytes")
            data = json.loads(opened.read(length))
        tensors = {name: entry for name, entry in data.items() if name != "__metadata__"}
        if not all(isinstance(entry, dict) and "dtype" in entry for entry in tensors.values()):
            raise ValueError("a header without dtypes")
    except (OSError, ValueError, AttributeError, struct.error, RecursionError) as error:
        raise FolderError(
            f"{file} cannot be read ({error}); the file is damaged or cut short. Copy it again."
        ) from None
    return tensors


def _check_headers(weights: Weights) -> None:
    seen: dict[str, Path] = {}
    for file in weights.files:
        for name, entry in _header(file).items():
            if entry["dtype"] not in FLOATS and not name.endswith("position_ids"):
                raise FolderError(
                    f"{file}: {name} must be a float ({', '.join(FLOATS)}), got {entry['dtype']}. "
                    "A quantised model cannot be distilled: give the one that it was made from."
                )
            if name in seen:
                raise FolderError(
                    f"{file}: {name} is in {seen[name].name} too. Copy the whole folder again."
                )
            seen[name] = file
    if weights.index is not None:
        listed = set(read_json(weights.index)["weight_map"])
        check_names(weights.index, missing=listed - set(seen), unexpected=set(seen) - listed)


def _check_report(report: dict[str, Any], path: Path, extra: set[str]) -> None:
    wrong = [f"{k[0]} of shape {list(k[1])}, not {list(k[2])}" for k in report["mismatched_keys"]]
    if wrong:
        raise _wrong_shapes(path, wrong)
    check_names(
        path,
        missing=set(report["missing_keys"]) - extra,
        unexpected=set(report["unexpected_keys"]) - extra,
    )


def check_names(path: Path, *, missing: set[str], unexpected: set[str]) -> None:
    """Raise FolderError that names the first tensors that are missing or unexpected."""
    if not missing and not unexpected:
        return
    lacks = f"{len(missing)} missing ({_some(sorted(missing), ', ')})" if missing else ""
    more = f"{len(unexpected)} unexpected ({_some(sorted(unexpected), ', ')})" if unexpected else ""
    raise FolderError(
        f"{path} must hold exactly the tensors of its network, got "
        f"{' and '.join(filter(None, (lacks, more)))}. The weights are damaged or of another "
        "model: copy the whole folder again."
    )


def _some(names: Sequence[str], between: str) -> str:
    shown = between.join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown}{between}..."


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silence the libraries' warnings on weights: what matters in them is raised as an error."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    before = of_diffusers.get_verbosity(), of_transformers.get_verbosity()
    bars = of_transformers.is_progress_bar_enabled(), of_diffusers.is_progress_bar_enabled()
    of_diffusers.set_verbosity_error()
    of_transformers.set_verbosity_error()
    of_diffusers.disable_progress_bar()
    of_transformers.disable_progress_bar()
    try:
        yield
    finally:
        of_diffusers.set_verbosity(before[0])
        of_transformers.set_verbosity(before[1])
        if bars[0]:
            of_transformers.enable_progress_bar()
        if bars[1]:
            of_diffusers.enable_progress_bar()
