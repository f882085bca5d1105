"""What the drawing commands share: open a model, read images and classes, write pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.bounds import check_images
from fewstep.cli.classes import Classes
from fewstep.cli.out import SHEET, Drawn, is_folder, write_folder
from fewstep.errors import RangeError

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.core.cond import Cond
    from fewstep.core.denoiser import Guided
    from fewstep.models import Card, Model

BATCH = 256
COLUMNS = 10
LARGEST_SCALE = 8
LARGEST_IMAGE = 512  # pixels of an image on a sheet, where no scale is given


@dataclass(frozen=True)
class Opened:
    """A model with its card, its folder and its device.

    The states of a model are images, or the latents of an autoencoder.
    """

    model: Model | Guided
    card: Card
    folder: Path
    device: str

    @property
    def takes_text(self) -> bool:
        """Whether conditions are prompts instead of classes."""
        return self.card.num_classes == 0

    @property
    def classes(self) -> Classes:
        """The classes of the model, as a user may name them."""
        card = self.card
        return Classes(card.class_names, card.num_classes, card.null_class)

    def steps(self, asked: int | None) -> int | None:
        """Return the steps to pass on: None where the model was made for one number of them."""
        return None if self.card.steps else asked

    def check_w_from(self, w_from: float) -> None:
        """Raise RangeError unless the model can encode at this w, the option --w-from."""
        if self.card.w_range is None:
            return
        low, high = self.card.w_range
        if not low <= w_from <= high:
            raise RangeError(
                f"--w-from must lie in [{low:g}, {high:g}], the range that the encoder "
                f"{self.card.name} was trained for, got {w_from:g}. Use --w-from {low:g}, for "
                "example."
            )

    @cached_property
    def vae(self) -> Any | None:
        """The autoencoder of a latent model; None for a pixel model."""
        from fewstep.folders import load_vae
        from fewstep.models import model_of

        source = model_of(self.model).source
        return None if source is None else load_vae(source, self.device)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of its images."""
        from fewstep.folders import image_shape

        return image_shape(self.folder, self.card)

    def states(self, images: Tensor) -> Tensor:
        """Return the states of images (B, C, H, W) in [-1, 1]. Raises NonFiniteError."""
        from fewstep.core.finite import check_finite
        from fewstep.models import encode_images

        if self.vae is None:
            return images.to(self.device)
        latents = encode_images(self.vae, images.to(self.device))
        return check_finite(latents, "the latents of the autoencoder", _VAE_ADVICE)

    def images(self, states: Tensor) -> Tensor:
        """Return the images of states, on the CPU. Raises NonFiniteError for NaN and infinity."""
        from fewstep.core.finite import check_finite
        from fewstep.models import decode_latents

        if self.vae is None:
            return states.cpu()
        images = decode_latents(self.vae, states.float())
        return check_finite(images, "the images of the autoencoder", _VAE_ADVICE).cpu()

    def cond(self, classes: str | None, prompt: str | None, count: int, option: str) -> Cond:
        """Return the condition batch of `count` images: classes, or one prompt for all.

        Raises RangeError: a prompt for a class model or the reverse, both, or neither.
        """
        from fewstep.core.cond import repeat_null
        from fewstep.folders import encode_prompts

        given = prompt if self.takes_text else classes
        if given is None or (classes is not None and prompt is not None):
            raise self.wrong_kind(option)
        if not self.takes_text:
            return self.class_of_each(given, count, option)
        return repeat_null(encode_prompts(self.folder, [given], device=self.device), count)

    def class_of_each(self, text: str, count: int, option: str) -> Tensor:
        """Return class ids (count,) of one class for all images, or of one class per image."""
        import torch

        ids = self.classes.ids(text, option)
        if len(ids) not in (1, count):
            raise RangeError(
                f"{option} must name one class for all images or one per image, got {len(ids)} "
                f"classes for {counted(count)}. Remove or add some."
            )
        return torch.tensor(ids if len(ids) == count else ids * count)

    def wrong_kind(self, option: str) -> RangeError:
        """Return the error for a condition of the other kind, both kinds or none."""
        if self.takes_text:
            name = "--prompt" if option == "--cond" else f"{option}-prompt"
            return RangeError(f"{self.card.name} draws by prompts: pass {name}, and no class.")
        return RangeError(f"{self.card.name} draws by classes: pass {option}, and no prompt.")


_VAE_ADVICE = (
    "Check the weights in its vae folder; some autoencoders overflow in float16 and need a version "
    "that was made for it."
)


def counted(count: int) -> str:
    """Return "1 image", "2 images" and so on."""
    return f"{count} image{'' if count == 1 else 's'}"


def open_model(folder: Path, device: str | None) -> Opened:
    """Return the model of a folder on a device; by default on the GPU where there is one."""
    from fewstep.core.device import choose_device
    from fewstep.files.hub import local
    from fewstep.folders import load
    from fewstep.models import card_of

    place = choose_device(device)
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
    """Return images, read in the same way as the model's training images."""
    from fewstep.data import image_files, read_images

    files, shape = image_files(paths), opened.image_shape
    check_images(len(files), shape)
    images = read_images(files, shape)
    return Pictures(files, images, opened.states(images))


def settings_of(command: str, models: Sequence[Opened], **more: Any) -> dict[str, Any]:
    """Return the settings that a picture carries: the command, the models, and the arguments."""
    return {
        "command": command,
        "models": [o.card.name for o in models],
        "weights": [o.card.weights_sha256 for o in models],
    } | more


def sheet_scale(scale: int | None, shape: Sequence[int]) -> int:
    """Return the factor by which a sheet enlarges images of shape (C, H, W)."""
    return scale or max(1, min(LARGEST_SCALE, LARGEST_IMAGE // max(shape[-2:])))


@dataclass(frozen=True)
class Sheet:
    """The sheet of a command, laid out before anything is drawn.

    Attributes:
        out: a PNG file, or a folder that gets the images as well.
        scale: factor by which each pixel is enlarged.
        columns: images side by side.
        shown: number of images per row that the sheet shows; all, except where a folder has more
            than the largest sheet holds.
    """

    out: Path
    scale: int
    columns: int
    shown: int

    @classmethod
    def planned(
        cls,
        out: Path,
        shape: Sequence[int],
        count: int,
        *,
        scale: int | None,
        columns: int = COLUMNS,
        rows: int = 1,
    ) -> Sheet:
        """Return the sheet of `rows` rows of `count` images of shape (C, H, W).

        Raises RangeError where a PNG file would be too large to open, or the images do not fit
        into memory.
        """
        from fewstep.show.sheet import check_sheet, most_shown

        factor, columns = sheet_scale(scale, shape), min(columns, count)
        shown = count
        if is_folder(out):
            shown = max(columns, most_shown(count, columns, shape, factor, rows))
        groups = -(-shown // columns)
        check_sheet(rows * groups * columns, columns, shape, factor)
        check_images(count * rows, shape)
        return cls(out, factor, columns, shown)

    @property
    def path(self) -> Path:
        """The PNG file of the sheet."""
        return self.out / SHEET if is_folder(self.out) else self.out

    def save(self, rows: Sequence[Tensor], drawn: Sequence[Drawn], settings: Any) -> str:
        """Write the sheet of rows (n, C, H, W), in a folder the images too; say what was written.

        drawn: the images, for a folder.
        """
        from fewstep.show.sheet import png, rows_of, save_sheet

        sheet = rows_of([row[: self.shown].cpu() for row in rows], self.columns, self.scale)
        if not is_folder(self.out):
            save_sheet(sheet, self.out, settings)
            return str(self.out)
        write_folder(self.out, drawn, png(sheet, settings))
        if self.shown < len(rows[0]):
            return f"{self.path} (with the first {self.shown})"
        return str(self.path)


def drawn_of(
    results: Sequence[Tensor], files: Sequence[Path], settings: dict[str, Any]
) -> list[Drawn]:
    """Return the images of rows (n, C, H, W) as files, named after their source files."""
    from fewstep.cli.out import short_name

    several = len(results) > 1
    return [
        draw(
            f"{short_name(file.stem)}{f'-{j}' if several else ''}",
            row[k],
            settings | {"source": file.name, "row": j},
        )
        for k, file in enumerate(files)
        for j, row in enumerate(results)
    ]


def draw(name: str, image: Tensor, settings: dict[str, Any]) -> Drawn:
    """Return an image (C, H, W) in [-1, 1] as a PNG file that carries its settings."""
    from fewstep.show.sheet import contact_sheet, png

    return Drawn(name, png(contact_sheet(image[None].cpu(), 1), settings), settings)
