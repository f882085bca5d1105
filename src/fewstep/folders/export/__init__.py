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
from fewstep.models.student import fold_steps

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
        options: fields of `Options` that the format takes, for example `w=3.0`; and of an any-step
            student, `steps`, the number of steps to fix.

    Raises:
        RangeError: an unknown format, an option that it does not take, w outside the range of the
            student, or a model that cannot be exported so.
        FolderError: as `load` raises, or `out` cannot be written or is the model's own folder.
    """
    chosen, out = format_named(to), Path(out)
    for name in sorted(k for k, v in options.items() if v is not None and k != "steps"):
        if name not in chosen.takes:
            raise RangeError(_not_taken(chosen, name))
    if isinstance(model, Path | str):
        folder = local(model)
        if folder.resolve() == out.resolve():
            raise FolderError(f"{out} is the model that is read. Give another folder to write.")
        model = load(folder)
    given = Options(**options)
    return chosen.write(_at_steps(model_of(model), given.steps), out, given)


def _at_steps(model: Model, steps: int | None) -> Model:
    """Return an any-step student at one number of steps, and any other model as it is.

    Raises RangeError for steps that are missing, or are not for this model.
    """
    if model.takes_steps and steps is None:
        counts = model.card.stage.counts
        raise RangeError(
            f"steps is required, the number of steps to fix in the weights: {model.card.name} was "
            f"made for {list(counts)}. Use --steps {counts[0]}, for example."
        )
    return model if steps is None else fold_steps(model, steps)


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
