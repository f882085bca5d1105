"""Images and captions encoded once: latents and text embeddings in shards, found by their content.

    root/<key>/cache.json                  identity, count, and the hash of every shard
               shard-00000.safetensors     x, and cond or cond.<name>, shard_size examples each

A key is the hash of all that the bytes depend on. Each shard appears whole, so a run that was
killed goes on where it was, and ends with the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm.auto import tqdm

from fewstep.atomic import atomic_write, json_sha256, sha256, write_json
from fewstep.core import cond as conds
from fewstep.core.cond import Cond
from fewstep.data.dataset import check_index
from fewstep.errors import DataError, NonFiniteError, RangeError, in_units

FORMAT = 1
MANIFEST = "cache.json"
Encode: TypeAlias = Callable[[range], tuple[Tensor, Cond]]
Log: TypeAlias = Callable[[str], None]


def cache_latents(
    root: Path | str,
    identity: Mapping[str, str],
    count: int,
    encode: Encode,
    *,
    shard_size: int = 1024,
    dtype: torch.dtype = torch.float32,
    say: Log | None = None,
    progress: bool = True,
) -> Latents:
    """Encode `count` examples, or go on where an earlier call was stopped; return the cache.

    Args:
        root: folder of caches; each has a folder of its own there, named after its identity.
        identity: what the bytes depend on: hashes of the encoders and of the data, under names.
        count: number of examples.
        encode: examples -> x (n, *D) and the condition batch of n. A pure function: of the same
            numbers it makes the same bytes. It is asked for shard_size examples at a time, and
            once for the first alone, to know the size.
        shard_size: examples a file.
        dtype: in which floats are kept; what `batch` returns is float32.
        say: called with how large the cache will be before it starts.
        progress: show a bar where stderr is a terminal.

    Raises:
        RangeError: count or shard_size below 1.
        DataError: a shard that is there is damaged; the disk has no room for the rest; encode
            gives another number of examples than it was asked for.
        NonFiniteError: a value that is NaN or infinite, or becomes so in dtype.
        FolderError: the disk cannot be written.
    """
    if count < 1 or shard_size < 1:
        raise RangeError(f"count = {count}, shard_size = {shard_size}; both must be at least 1.")
    about: dict[str, Any] = {
        "identity": dict(identity),
        "count": count,
        "shard_size": shard_size,
        "dtype": str(dtype).removeprefix("torch."),
    }
    key = json_sha256(about)
    folder = Path(root) / key[:24]
    done = _shards(_manifest(folder)) if (folder / MANIFEST).is_file() else {}
    names = [f"shard-{n:05d}.safetensors" for n in range(-(-count // shard_size))]
    missing = [n for n, name in enumerate(names) if not _is_whole(folder / name, done.get(name))]
    if missing:
        each = _size(encode, dtype)
        left = each * sum(len(_part(n, count, shard_size)) for n in missing)
        _announce(say, folder, count, each * count, left)
    for n in tqdm(missing, disable=None if progress and missing else True, unit="shard"):
        part = _part(n, count, shard_size)
        data = save(_tensors(encode, part, dtype))
        atomic_write(folder / names[n], data)
        done[names[n]] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        manifest = {"format": FORMAT, **about, "shards": {k: done[k] for k in sorted(done)}}
        write_json(folder / MANIFEST, manifest)
    return Latents(folder)


def _part(n: int, count: int, shard_size: int) -> range:
    return range(n * shard_size, min((n + 1) * shard_size, count))


def _tensors(encode: Encode, part: range, dtype: torch.dtype) -> dict[str, Tensor]:
    x, cond = encode(part)
    found = {len(x), conds.batch_size(cond)}
    if found != {len(part)}:
        raise DataError(
            f"encode gave {sorted(found)} examples for the {len(part)} of {part.start} to "
            f"{part.stop - 1}; it must give x and condition of each."
        )
    named = {f"cond.{k}": t for k, t in cond.items()} if isinstance(cond, dict) else {"cond": cond}
    out = {
        name: (t.to(dtype) if t.is_floating_point() else t).cpu().contiguous()
        for name, t in {"x": x, **named}.items()
    }
    for name, t in out.items():
        _check_finite(name, t, part, dtype)
    return out


def _check_finite(name: str, t: Tensor, part: range, dtype: torch.dtype) -> None:
    if not t.is_floating_point() or bool(torch.isfinite(t).all()):
        return
    row = int((~torch.isfinite(t.flatten(1))).any(1).nonzero()[0]) if t.ndim > 1 else 0
    advice = "" if dtype == torch.float32 else " Store floats as float32 (latents.dtype=float32)."
    raise NonFiniteError(
        f"example {part.start + row} has values of {name} that are NaN or infinite as "
        f"{str(dtype).removeprefix('torch.')}; the cache must be finite. Look at the encoders."
        f"{advice}"
    )


def _size(encode: Encode, dtype: torch.dtype) -> int:
    return sum(t.numel() * t.element_size() for t in _tensors(encode, range(1), dtype).values())


def _announce(say: Log | None, folder: Path, count: int, total: int, left: int) -> None:
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if say is not None:
        say(
            f"{count} examples, {in_units(total)} in {folder}; {in_units(left)} still to be "
            f"written, {in_units(free)} free"
        )
    if left > free:
        raise DataError(
            f"{folder} needs another {in_units(left)} and the disk has {in_units(free)}. Make "
            "room, give another root, or keep floats as float16."
        )


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{folder} has no {MANIFEST}; give the folder that cache_latents made."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON ({error}); remove {folder} to encode again.") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        given = found.get("format") if isinstance(found, dict) else None
        raise DataError(f"{path}: format: {given!r}; this fewstep reads format {FORMAT}.")
    return found


def _shards(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    shards: dict[str, dict[str, Any]] = manifest["shards"]
    return shards


def _is_whole(path: Path, known: dict[str, Any] | None) -> bool:
    """Whether a shard is there, as it was written. Raises DataError where it is another."""
    if known is None or not path.is_file():
        return False
    found = sha256(path)
    if found != known["sha256"]:
        raise DataError(
            f"{path} is damaged: its sha256 is {found[:12]}..., it was written as "
            f"{known['sha256'][:12]}... Remove it and run again: only that file is encoded again."
        )
    return True


class Latents:
    """Encoded examples on the disk; `fewstep.data.Dataset`, with conditions in place of classes.

    A shard is compared with its hash when it is first read. Rows are read as they are asked for,
    so memory does not grow with the cache.

    Attributes:
        folder: of the cache.
        shape: of one latent.
        summary: how many there are, in one line.
    """

    num_classes = 0
    class_names: tuple[str, ...] = ()
    class_texts: tuple[str, ...] = ()
    skipped = 0

    def __init__(self, folder: Path | str) -> None:
        """Open a finished cache. Raises DataError where there is none, or it is not finished."""
        self.folder = Path(folder)
        self._manifest = _manifest(self.folder)
        self._count, self._each = int(self._manifest["count"]), int(self._manifest["shard_size"])
        expected = -(-self._count // self._each)
        if (count := len(_shards(self._manifest))) != expected:
            raise DataError(
                f"{self.folder} has {count} of {expected} shards; run the same command again to "
                "encode the rest."
            )
        self.summary = f"{self.folder}: {self._count:,} encoded examples"
        self._open: dict[int, dict[str, Tensor]] = {}
        self.shape: tuple[int, ...] = tuple(self._shard(0)["x"].shape[1:])

    def __len__(self) -> int:
        """Return the number of examples."""
        return self._count

    def batch(self, index: Tensor) -> tuple[Tensor, Cond]:
        """Return x (B, *shape) and the condition batch of B, floats as float32.

        Raises DataError: a shard that is missing or damaged, by name; an index out of range.
        """
        check_index(index, len(self))
        made = {
            name: torch.empty(
                (len(index), *t.shape[1:]),
                dtype=torch.float32 if t.is_floating_point() else t.dtype,
            )
            for name, t in self._shard(0).items()
        }
        for place, number in enumerate(index.tolist()):
            shard, row = divmod(number, self._each)
            for name, t in self._shard(shard).items():
                made[name][place].copy_(t[row])
        x = made.pop("x")
        if "cond" in made:
            return x, made["cond"]
        return x, {name.removeprefix("cond."): t for name, t in made.items()}

    def content_hash(self) -> str:
        """Return the sha256, in hex, of all shards."""
        hashes = [s["sha256"] for _, s in sorted(_shards(self._manifest).items())]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def _shard(self, shard: int) -> dict[str, Tensor]:
        """Return the tensors of a shard: views of the file, of which a row is read when asked."""
        if shard not in self._open:
            name = f"shard-{shard:05d}.safetensors"
            path = self.folder / name
            if not _is_whole(path, _shards(self._manifest).get(name)):
                raise DataError(f"{path} is missing; run the command that made it again.")
            try:
                with safe_open(path, framework="pt") as file:
                    names = file.keys()
                    self._open[shard] = {name: file.get_tensor(name) for name in names}
            except SafetensorError as error:
                raise DataError(f"{path} cannot be read ({error}).") from None
        return self._open[shard]
