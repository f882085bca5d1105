"""Models of a hub by their id, fetched into its cache, and pushed; and models in single files."""

from __future__ import annotations

import re
from pathlib import Path

from fewstep.errors import FolderError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = ["*.json", "*.txt", "*.model", "*/*.safetensors", "README.md", "LICENSE*", "LICENCE*"]
_VARIANTS = ["*.fp16*", "*.bf16*", "*.non_ema*"]


def local(name: Path | str) -> Path:
    """Return the folder of a model: the path itself, or where a hub id or a single file is kept.

    A whole checkpoint of Stable Diffusion in one safetensors file is unpacked into the cache.

    A name is a hub id where it looks like one (owner/name) and neither it nor `owner` is here.
    Settings, safetensors and licences are fetched, and variants such as fp16 where a part has
    nothing else; pickles are not. With HF_HUB_OFFLINE, or without a network, only what was fetched
    before is found.
    Raises FolderError where there is no such model, or it cannot be fetched or unpacked.
    """
    try:
        path = Path(name)
    except TypeError:
        raise FolderError(
            f"a model must be a folder's path or the id of a hub's model, got {str(name)[:60]}. "
            "Pass a string such as 'runs/demo/teacher'."
        ) from None
    model_id = path.as_posix()
    if path.is_file():
        from fewstep.files.single import is_checkpoint, unpacked

        return unpacked(path) if is_checkpoint(path) else path
    if path.exists() or not _ID.fullmatch(model_id) or path.parent.exists():
        return path
    from huggingface_hub import snapshot_download

    try:
        # Its errors are of many classes, of several libraries; all mean the same here.
        found = Path(snapshot_download(model_id, allow_patterns=_WANTED, ignore_patterns=_VARIANTS))
        if _lacks_weights(found):
            found = Path(snapshot_download(model_id, allow_patterns=_WANTED))
    except Exception as error:  # noqa: BLE001
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise FolderError(
            f"{model_id} is neither a folder here nor a model that can be had of the hub "
            f"({type(error).__name__}: {reason}). Check the name, the network and HF_HUB_OFFLINE, "
            "or give a folder."
        ) from None
    return found


def _lacks_weights(folder: Path) -> bool:
    """Whether a part has settings and no weights: the hub has them as a variant alone, or none."""
    parts = [config.parent for config in folder.glob("*/config.json")]
    return any(not any(part.glob("*.safetensors")) for part in parts)


def check_push(repo_id: str, token: str | None = None) -> None:
    """Raise FolderError where a model could not be pushed: a name that is none, or no token."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise FolderError(
            f"the name of a hub's repository must be owner/name, got {repo_id[:60]!r} "
            f"({str(error).splitlines()[0][:120]}). Use another name."
        ) from None
    if (token or get_token()) is None:
        raise FolderError(
            f"pushing to {repo_id} needs a token of the hub, and there is none. Use "
            "`hf auth login`, or set HF_TOKEN."
        )


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload a folder to a repository of the hub, which is created where it is missing.

    private: of a new repository; None is the hub's default. token: by default that of
    `hf auth login` or HF_TOKEN. Returns the address of the repository.
    Raises FolderError as `check_push` does, and where the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    check_push(repo_id, token)
    api = HfApi(token=token)
    try:
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            commit_message=commit_message or "Upload model",
        )
    except Exception as error:  # noqa: BLE001
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise FolderError(
            f"{folder} is saved, and could not be pushed to {repo_id} ({type(error).__name__}: "
            f"{reason[:200]}). Check the token, the network and HF_HUB_OFFLINE, then push again."
        ) from None
    return str(made)
