"""Single-file checkpoints of Stable Diffusion 1, 2 and XL, opened as the folders of a pipeline.

    <cache>/single-files/<key>/<name of the file>/    the folder, made by diffusers once

A checkpoint holds weights alone. The settings and tokenizers of its parts come from a folder of
its name beside it (dream/ beside dream.safetensors), or, without one, from the model of the hub
that diffusers takes such checkpoints to be made from.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fewstep.atomic import atomic_folder, json_sha256
from fewstep.errors import FolderError
from fewstep.files.cache import cache_root
from fewstep.files.parts import INDEX, LONGEST, reading
from fewstep.files.weights import FLOATS, file_sha256, quietly

NETWORK, VAE = "model.diffusion_model.", "first_stage_model."
ENCODERS = ("cond_stage_model.", "conditioner.embedders.0.")
SECOND_ENCODER = "conditioner.embedders.1."
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}
FORMAT = 1  # of the key
MAX_HEADER = 100 * 1024 * 1024  # bytes; the limit of the safetensors library

Header = Mapping[str, dict[str, Any]]


def header_of(file: Path) -> Header:
    """Return name -> dtype, shape and place of a file's tensors; {} where it cannot be read."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > MAX_HEADER:
                return {}
            data = json.loads(opened.read(length))
        return {str(k): v for k, v in data.items() if k != "__metadata__" and "dtype" in v}
    except (OSError, ValueError, TypeError, AttributeError, struct.error, RecursionError):
        return {}


def is_checkpoint(file: Path) -> bool:
    """Whether a file is a whole checkpoint: network, autoencoder and text encoder."""
    if file.suffix.lower() != ".safetensors" or not file.is_file():
        return False
    names = header_of(file)
    return all(any(n.startswith(p) for n in names) for p in (NETWORK, VAE, ENCODERS))


def unpacked(file: Path) -> Path:
    """Return the pipeline folder of a whole checkpoint, made now or found from before.

    Its weights keep their number format. Raises FolderError: a file that is cut short, one that
    diffusers cannot convert, or settings that cannot be had.
    """
    header = header_of(file)
    with reading(file):
        _check_header(file, header)
    beside = file.with_suffix("")
    config = beside if (beside / INDEX).is_file() else None
    key = json_sha256([FORMAT, file_sha256(file), _settings(config)])
    folder = cache_root() / "single-files" / key / file.stem
    if (folder / INDEX).is_file():
        return folder
    pipe = _converted(file, header, config)
    _check_whole(file, header, pipe)
    _check_prediction(file, header, pipe.scheduler.config)
    with atomic_folder(folder, INDEX) as partial, quietly():
        pipe.save_pretrained(partial, safe_serialization=True)
    return folder


def _check_header(file: Path, header: Header) -> None:
    """Raise FolderError for a file that is cut short or quantised."""
    for name, entry in header.items():
        if name.startswith((NETWORK, VAE)) and entry["dtype"] not in FLOATS:
            raise FolderError(
                f"{file}: {name} must be a float ({', '.join(FLOATS)}), got {entry['dtype']}. A "
                "quantised model cannot be distilled: give the one that it was made from."
            )
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
    wanted = 8 + length + max(int(entry["data_offsets"][1]) for entry in header.values())
    if file.stat().st_size < wanted:
        raise FolderError(
            f"{file} must have {wanted} bytes by its own header, got {file.stat().st_size}; it is "
            "cut short. Copy it again."
        )


def _settings(config: Path | None) -> dict[str, str]:
    """Return the hashes of the files from which the settings come; none for those of the hub."""
    if config is None:
        return {}
    files = [p for end in ("json", "txt", "model") for p in config.rglob(f"*.{end}")]
    return {str(p.relative_to(config)): file_sha256(p) for p in sorted(files)}


def _converted(file: Path, header: Header, config: Path | None) -> Any:
    """Return the stock pipeline that diffusers makes of a checkpoint."""
    import diffusers
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    xl = any(name.startswith(SECOND_ENCODER) for name in header)
    kind = diffusers.StableDiffusionXLPipeline if xl else diffusers.StableDiffusionPipeline
    formats = {entry["dtype"] for entry in header.values() if entry["dtype"] in FLOATS}
    dtype = DTYPES.get(formats.pop(), torch.float32) if len(formats) == 1 else torch.float32
    options = {} if config is None else {"config": str(config)}
    # Some parts draw weights before they read them; the caller's generator is left alone.
    with torch.random.fork_rng(devices=[]), quietly():
        try:
            return kind.from_single_file(
                str(file), torch_dtype=dtype, local_files_only=config is not None, **options
            )
        except (LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
            if config is not None:
                raise _not_converted(file, error) from None
            raise FolderError(
                f"{file} holds weights alone, and the settings and tokenizers that diffusers takes "
                "for it are neither in the hub's cache nor to be fetched. Put those of its "
                f"pipeline (a diffusers folder; weights are not needed) into {file.with_suffix('')}"
                ", or run once with a network."
            ) from None
        except Exception as error:  # noqa: BLE001  a strange file makes diffusers raise anything
            raise _not_converted(file, error) from None


def _not_converted(file: Path, error: Exception) -> FolderError:
    reason = " ".join(str(error).split())[:LONGEST]
    return FolderError(
        f"{file} cannot be converted by diffusers ({type(error).__name__}: {reason}). Give a whole "
        "checkpoint of Stable Diffusion 1, 2 or XL, with the settings of that model in "
        f"{file.with_suffix('')}."
    )


def _check_whole(file: Path, header: Header, pipe: Any) -> None:
    """Raise FolderError where a part lacks a tensor, or the file has more than its network."""
    for part, module in pipe.components.items():
        named = module.named_parameters() if isinstance(module, torch.nn.Module) else ()
        for name, tensor in named:
            if tensor.is_meta:
                raise FolderError(
                    f"{file} must hold all tensors of the settings' {part}, and {name} is missing. "
                    f"Copy it again, or put the settings of its own pipeline into "
                    f"{file.with_suffix('')}."
                )
    given = sum(name.startswith(NETWORK) for name in header)
    if given != len(pipe.unet.state_dict()):
        raise FolderError(
            f"{file} must hold the network that its settings describe, which has "
            f"{len(pipe.unet.state_dict())} tensors, got {given}. Put the settings of its own "
            f"pipeline into {file.with_suffix('')}."
        )


def _check_prediction(file: Path, header: Header, scheduler: Mapping[str, Any]) -> None:
    """Raise FolderError where a file says that its noise schedule is not that of its settings."""
    found = scheduler.get("prediction_type")
    if "v_pred" in header and found != "v_prediction":
        raise FolderError(
            f"{file} says that its network predicts v (it holds v_pred), and the scheduler of its "
            f"settings has prediction_type {found!r}. Put the settings of its own pipeline into "
            f"{file.with_suffix('')}."
        )
    if "ztsnr" in header and not scheduler.get("rescale_betas_zero_snr"):
        raise FolderError(
            f"{file} says that its noise schedule ends in pure noise (it holds ztsnr), and the "
            "scheduler of its settings has rescale_betas_zero_snr false. Put the settings of its "
            f"own pipeline into {file.with_suffix('')}."
        )
