"""Models of a hub by their id: fetched where such a name is given, into the hub's own cache."""

from __future__ import annotations

import re
from pathlib import Path

from fewstep.errors import FolderError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = ["*.json", "*.txt", "*.model", "*/*.safetensors", "README.md", "LICENSE*", "LICENCE*"]
_VARIANTS = ["*.fp16.safetensors", "*.bf16.safetensors", "*.non_ema.safetensors"]


def local(name: Path | str) -> Path:
    """Return the folder of a model: the path itself, or where the model of a hub id is kept.

    A name is a hub id where it looks like one (owner/name) and neither it nor `owner` is here.
    Settings, safetensors and licences are fetched, pickles and variants are not; with
    HF_HUB_OFFLINE, or without a network, only what was fetched before is found.
    Raises FolderError where there is no such model, or it cannot be fetched.
    """
    path = Path(name)
    told = path.as_posix()
    if path.exists() or not _ID.fullmatch(told) or path.parent.exists():
        return path
    from huggingface_hub import snapshot_download

    try:
        # Its errors are of many classes, of several libraries; all mean the same here.
        found = snapshot_download(told, allow_patterns=_WANTED, ignore_patterns=_VARIANTS)
    except Exception as error:  # noqa: BLE001
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise FolderError(
            f"{told} is neither a folder here nor a model that can be had of the hub "
            f"({type(error).__name__}: {reason}). Check the name, the network and HF_HUB_OFFLINE, "
            "or give a folder."
        ) from None
    return Path(found)
