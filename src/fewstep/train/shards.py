"""Checkpoints of sharded runs: each process writes its own part of every tensor.

torch.distributed.checkpoint writes them as safetensors, one file per process, and any number of
processes can read them.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fewstep.errors import FolderError
from fewstep.train.processes import agreed, gathered, is_main, piece

Keys = tuple[str | int, ...]
SHARD = re.compile(r"shard-[0-9]+-model-[0-9]+-of-[0-9]+\.safetensors")


def take_out(nested: dict[Any, Any], path: Keys = ()) -> dict[Keys, Tensor]:
    """Return the sharded tensors of nested dictionaries, by the keys to each, and remove them."""
    found: dict[Keys, Tensor] = {}
    for key, value in list(nested.items()):
        if isinstance(value, dict):
            nested[key] = dict(value)
            found |= take_out(nested[key], (*path, key))
        elif isinstance(value, DTensor):
            found[(*path, key)] = nested.pop(key).detach()
    return found


def put_back(nested: dict[Any, Any], found: dict[Keys, Tensor]) -> None:
    """Undo `take_out`."""
    for path, tensor in found.items():
        inner = nested
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = tensor


def write_shards(folder: Path | None, tensors: dict[str, Tensor]) -> None:
    """Write this process's part of the tensors; every process must call this.

    folder: where to, given by the first process. An error of one process is raised in all of them.

    Raises FolderError where the first process does not see the files of all.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    where = agreed(folder)
    assert where is not None
    try:
        save(
            dict(tensors),
            storage_writer=HuggingFaceStorageWriter(str(where), save_distributed=True),
        )
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None
    # A process whose parts are all empty need not write a file.
    wrote = gathered(any(piece(tensor).numel() for tensor in tensors.values()))
    seen = [path for path in where.iterdir() if SHARD.fullmatch(path.name)] if is_main() else []
    found, writers = agreed((len(seen), sum(wrote)))
    if found < writers:
        raise FolderError(
            f"the folder of the run must be one that all processes see, and {where.parent} got the "
            f"parts of {found} of {writers} processes. Put the run on a disk that all machines "
            "share."
        )


def read_shards(folder: Path) -> dict[str, Tensor]:
    """Return the tensors that were written, whole, on the CPU."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    known: dict[str, Any] = reader.read_metadata().state_dict_metadata
    found = {name: torch.empty(m.size, dtype=m.properties.dtype) for name, m in known.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that one process reads is on purpose
        load(found, storage_reader=reader, no_dist=True)
    return found
