"""Students in the formats of other programs. A new format is a file here and a line in FORMATS."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from fewstep.core.denoiser import Denoiser
from fewstep.errors import FolderError, RangeError, did_you_mean
from fewstep.files.hub import local
from fewstep.folders.export.format import Format, Options
from fewstep.folders.export.lora import LORA_FILES
from fewstep.folders.export.onnx import ONNX
from fewstep.folders.export.single_file import SINGLE_FILE
from fewstep.folders.export.stock_folder import STOCK_FOLDER
from fewstep.folders.read import load
from fewstep.models.model import Model, model_of

__all__ = ["FORMATS", "Format", "Options", "export", "format_named"]

FORMATS: dict[str, Format] = {f.name: f for f in (STOCK_FOLDER, SINGLE_FILE, LORA_FILES, ONNX)}


def export(
    model: Denoiser | Path | str, out: Path | str, *, to: str = "diffusers", **options: Any
) -> tuple[str, ...]:
    """Write a student in the format of other programs; return lines on what was written.

    Args:
        model: what `load` gave, or the folder or hub id of a model.
        out: the folder to write. It appears whole or not at all. A folder that the same format
            wrote before is replaced; any other is not.
        to: name of the format, one of FORMATS.
        options: fields of `Options` that the format takes, for example `w=3.0`.

    Raises:
        RangeError: an unknown format, an option that it does not take, w outside the range of the
            student, or a model that cannot be exported so.
        FolderError: as `load` raises, or `out` cannot be written or is the model's own folder.
    """
    chosen, out = format_named(to), Path(out)
    for name in sorted(k for k, v in options.items() if v is not None):
        if name not in chosen.takes:
            raise RangeError(_not_taken(chosen, name))
    if isinstance(model, Path | str):
        folder = local(model)
        if folder.resolve() == out.resolve():
            raise FolderError(f"{out} is the model that is read. Give another folder to write.")
        model = load(folder)
    inner: Model = model_of(model)
    return chosen.write(inner, out, Options(**options))


def format_named(name: str) -> Format:
    """Return the format of a name. Raises RangeError for an unknown one."""
    if name not in FORMATS:
        raise RangeError(
            f"the format must be one of {', '.join(FORMATS)}, got {name!r}."
            f"{did_you_mean(name, FORMATS)}"
        )
    return FORMATS[name]


def _not_taken(chosen: Format, name: str) -> str:
    if name not in {f.name for f in fields(Options)}:
        return f"{name} is no option of an export.{did_you_mean(name, chosen.takes)}"
    users = ", ".join(f.name for f in FORMATS.values() if name in f.takes)
    return f"{name} must be left out for the format {chosen.name}; it is an option of {users}."
