"""`fewstep decode`: images from a given noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.options import (
    Decoder,
    Device,
    OutSheet,
    Overwrite,
    Prompt,
    Scale,
    Steps,
    say,
)
from fewstep.cli.out import KEY, check_out
from fewstep.cli.pictures import BATCH, Sheet, counted, drawn_of, open_model, settings_of
from fewstep.errors import FolderError

if TYPE_CHECKING:
    from torch import Tensor


def decode_command(
    model: Decoder,
    noise: Annotated[Path, typer.Argument(help="File written by `fewstep encode`.")],
    cond: Annotated[
        str | None,
        typer.Option(
            help="Class to draw: one for all (cat, or 3), one per image (cat,dog), or any; by "
            "default the class that was encoded."
        ),
    ] = None,
    prompt: Prompt = None,
    w: Annotated[float, typer.Option(help="Guidance weight w; 0 undoes encoding at 0.")] = 0.0,
    steps: Steps = None,
    out: OutSheet = Path("decoded.png"),
    scale: Scale = None,
    overwrite: Overwrite = False,
    device: Device = None,
) -> None:
    """Draw images from encoded noise.

    They are drawn as the class that was encoded, or as another one.
    """
    check_out(out, overwrite, [noise])
    from fewstep.edit import decode

    z, encoded = read_noise(noise)
    opened = open_model(model, device)
    if cond is None and prompt is None:
        cond, prompt = _text(encoded, "cond"), _text(encoded, "prompt")
    sheet = Sheet.planned(out, opened.image_shape, len(z), scale=scale)
    wanted = opened.cond(cond, prompt, len(z), "--cond")
    x = decode(opened.model, z.to(opened.device), wanted, w=w, steps=steps, batch_size=BATCH)
    settings = settings_of("decode", [opened], w=w, steps=steps or opened.card.steps, cond=cond)
    settings |= {"prompt": prompt, "encoded": encoded}
    images = opened.images(x)
    drawn = drawn_of([images], _files(encoded, len(z)), settings)
    say(f"{counted(len(x))}: {sheet.save([images], drawn, settings)}")


def read_noise(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """Return the noise z (B, *D) in float32 of an `encode` file, and its settings.

    Raises FolderError for another file, NonFiniteError for NaN or infinity.
    """
    from safetensors import SafetensorError, safe_open

    from fewstep.core.finite import check_finite

    advice = "Give a file that `fewstep encode` wrote."
    if not path.is_file():
        raise FolderError(f"the noise must be a file, and {path} is none. {advice}")
    try:
        with safe_open(path, "pt") as file:
            settings = json.loads((file.metadata() or {})[KEY])
            z = file.get_tensor("z")
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise FolderError(f"{path} holds no encoded noise ({error}). {advice}") from None
    if not isinstance(settings, dict) or not z.is_floating_point() or z.ndim < 2 or not len(z):
        raise FolderError(
            f"{path} holds no encoded noise: z must be a floating-point tensor (B, C, H, W), got "
            f"{z.dtype} of shape {tuple(z.shape)}. {advice}"
        )
    return check_finite(z.float(), f"the noise in {path}", f"{advice}"), settings


def _text(settings: dict[str, Any], key: str) -> str | None:
    found = settings.get(key)
    return found if isinstance(found, str) else None


def _files(settings: dict[str, Any], count: int) -> list[Path]:
    """Return the names of the encoded files, or numbers where there are not as many."""
    found = settings.get("files")
    if isinstance(found, list) and len(found) == count and all(isinstance(f, str) for f in found):
        return [Path(f) for f in found]
    return [Path(str(k)) for k in range(count)]


command = decode_command
