"""What the commands that edit images share: reading them, their classes, and what is left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.options import class_ids
from fewstep.errors import FolderError, RangeError

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.core.cond import Cond
    from fewstep.core.denoiser import Guided
    from fewstep.models import Card, Model

ANY = "any"
BATCH = 256
COLUMNS = 10


@dataclass(frozen=True)
class Opened:
    """A model, what its card says, its folder, and where it runs.

    States are what the model works on: images, or the latents of an autoencoder.
    """

    model: Model | Guided
    card: Card
    folder: Path
    device: str

    @property
    def takes_text(self) -> bool:
        """Whether conditions are prompts, and not classes."""
        return self.card.num_classes == 0

    def steps(self, asked: int | None) -> int | None:
        """Return the steps to ask for: none where the model was made for one number of them."""
        return None if self.card.steps else asked

    @cached_property
    def vae(self) -> Any | None:
        """The autoencoder of a model of latents."""
        from fewstep.models import load_vae, network_of

        source = network_of(self.model).source
        return None if source is None else load_vae(source, self.device)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of its images."""
        from fewstep.models import image_shape

        return image_shape(self.folder, self.card)

    def states(self, images: Tensor) -> Tensor:
        """Return the states of images (B, C, H, W) in [-1, 1]."""
        if self.vae is None:
            return images.to(self.device)
        from fewstep.models import encode_images

        return encode_images(self.vae, images.to(self.device))

    def images(self, states: Tensor) -> Tensor:
        """Return the images of states, on the CPU."""
        if self.vae is None:
            return states.cpu()
        from fewstep.models import decode_latents

        return decode_latents(self.vae, states.float()).cpu()

    def cond(self, classes: str | None, prompt: str | None, count: int, option: str) -> Cond:
        """Return the condition batch of `count`: classes, or one prompt for all.

        Raises RangeError where the model takes the other, or neither is given.
        """
        from fewstep.core.cond import repeat_null
        from fewstep.models import encode_prompts

        given, wanted = (prompt, "prompt") if self.takes_text else (classes, "class")
        if given is None or (classes is not None and prompt is not None):
            raise RangeError(
                f"{self.card.name} draws by {wanted}{'s' if self.takes_text else 'es'}: give a "
                f"{wanted}, with {self._option(option)}."
            )
        if not self.takes_text:
            return class_of_each(given, option, self.card, count)
        return repeat_null(encode_prompts(self.folder, [given], device=self.device), count)

    def _option(self, option: str) -> str:
        if not self.takes_text:
            return option
        return "--prompt" if option == "--cond" else f"{option}-prompt"


def open_model(folder: Path, device: str | None) -> Opened:
    """Return the model of a folder, on the GPU where there is one."""
    import torch

    from fewstep.models import card_of, load, local

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = local(folder)
    loaded = load(folder, place)
    return Opened(loaded, card_of(loaded), folder, place)


@dataclass(frozen=True)
class Pictures:
    """Images that were read: (B, C, H, W) in [-1, 1], and their states x."""

    files: list[Path]
    images: Tensor
    x: Tensor


def open_pictures(paths: Sequence[Path], opened: Opened) -> Pictures:
    """Return the images as the model's training images were read."""
    from fewstep.data import image_files, read_images

    files = image_files(paths)
    images = read_images(files, opened.image_shape)
    return Pictures(files, images, opened.states(images))


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
    from fewstep.recipes.sheet import rows_of, save_sheet

    sheet = rows_of([row.cpu() for row in (*above, *results)], COLUMNS, scale)
    if out.suffix:
        save_sheet(sheet, out, settings)
        return out
    named = [
        (
            f"{file.stem}{f'-{j}' if len(results) > 1 else ''}",
            row[k],
            {"source": file.name, "row": j},
        )
        for k, file in enumerate(files)
        for j, row in enumerate(results)
    ]
    save_each(out, named, settings)
    save_sheet(sheet, out / "sheet.png", settings)
    return out / "sheet.png"


def save_each(
    out: Path, named: Sequence[tuple[str, Tensor, dict[str, Any]]], settings: dict[str, Any]
) -> None:
    """Write images (C, H, W) into a folder, a file each, and a line each in metadata.jsonl.

    named: (name, image, what is told of it beside the settings); names get a number in front.
    """
    from fewstep.atomic import atomic_write
    from fewstep.recipes.sheet import contact_sheet, png

    lines = []
    for k, (name, image, told) in enumerate(named):
        file, own = f"{k:04d}-{name}.png", {**settings, **told}
        atomic_write(out / file, png(contact_sheet(image[None].cpu(), 1), own))
        lines.append(json.dumps({"file_name": file, **own}))
    atomic_write(out / "metadata.jsonl", ("\n".join(lines) + "\n").encode())
