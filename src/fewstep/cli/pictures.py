"""What the commands that edit images share: reading them, their classes, and what is left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.options import class_ids
from fewstep.errors import FolderError, RangeError

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.core.denoiser import Guided
    from fewstep.models import Card, Model

ANY = "any"
BATCH = 256
COLUMNS = 10


@dataclass(frozen=True)
class Opened:
    """A model, what its card says, and where it runs."""

    model: Model | Guided
    card: Card
    device: str


def open_model(folder: Path, device: str | None) -> Opened:
    """Return the model of a folder, on the GPU where there is one."""
    import torch

    from fewstep.models import card_of, load

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load(folder, place)
    return Opened(loaded, card_of(loaded), place)


@dataclass(frozen=True)
class Pictures:
    """Images that were read. x: (B, C, H, W) in [-1, 1]."""

    files: list[Path]
    x: Tensor


def open_pictures(paths: Sequence[Path], opened: Opened) -> Pictures:
    """Return the images as the model's training images were read."""
    from fewstep.data import image_files, read_images

    files = image_files(paths)
    return Pictures(files, read_images(files, opened.card.shape).to(opened.device))


def class_of_each(text: str, option: str, card: Card, count: int) -> Tensor:
    """Return class ids (count,) of "cat", or of a list with one an image; "any" is the null."""
    import torch

    if text.strip() == ANY:
        return torch.full((count,), card.null_class)
    ids = class_ids(text, card.class_names, option)
    if len(ids) not in (1, count):
        raise RangeError(
            f"{option} {text!r} names {len(ids)} classes for {count} images; give one, or one an "
            "image."
        )
    return torch.tensor(ids if len(ids) == count else ids * count)


def settings_of(command: str, models: Sequence[Opened], **told: Any) -> dict[str, Any]:
    """Return what a picture carries: the command, the models' names and weights, the rest."""
    names = [o.card.name for o in models]
    return {
        "command": command,
        "models": names,
        "weights": [o.card.weights_sha256 for o in models],
    } | told


def check_out(out: Path) -> None:
    """Raise RangeError unless `out` is a PNG file or a folder."""
    if out.suffix.lower() not in ("", ".png"):
        raise RangeError(
            f"--out {out}; name a PNG file for a sheet alone, or a folder for the images as well: "
            f"{out.with_suffix('.png')} or {out.with_suffix('')}."
        )
    if out.suffix and out.is_dir():
        raise FolderError(f"{out} is a folder. Name a file that is not there.")


def save_pictures(
    out: Path,
    above: Sequence[Tensor],
    results: Sequence[Tensor],
    files: Sequence[Path],
    settings: dict[str, Any],
    scale: int,
) -> Path:
    """Write rows of images (n, C, H, W), one above the other, as a sheet; return its path.

    above: sources, for the sheet alone. results: where `out` is a folder, every image of theirs
    is a file in it, named after its source `files`, with a line in metadata.jsonl.
    """
    from fewstep.atomic import atomic_write
    from fewstep.recipes.sheet import contact_sheet, png, rows_of, save_sheet

    sheet = rows_of([row.cpu() for row in (*above, *results)], COLUMNS, scale)
    if out.suffix:
        save_sheet(sheet, out, settings)
        return out
    lines = []
    for k, file in enumerate(files):
        for j, row in enumerate(results):
            mark = f"-{j}" if len(results) > 1 else ""
            name = f"{k:04d}-{file.stem}{mark}.png"
            own = {**settings, "source": file.name, "row": j}
            atomic_write(out / name, png(contact_sheet(row[k : k + 1].cpu(), 1), own))
            lines.append(json.dumps({"file_name": name, **own}))
    atomic_write(out / "metadata.jsonl", ("\n".join(lines) + "\n").encode())
    save_sheet(sheet, out / "sheet.png", settings)
    return out / "sheet.png"
