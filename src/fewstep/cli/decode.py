"""`fewstep decode`: images from a given noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.options import (
    Device,
    GuidanceScale,
    Prompt,
    Scale,
    Steps,
    refuse_guidance_scale,
    say,
)
from fewstep.errors import FolderError

if TYPE_CHECKING:
    from torch import Tensor


def decode_command(
    model: Annotated[Path, typer.Argument(help="Folder of a student, or of a teacher.")],
    noise: Annotated[Path, typer.Argument(help="File that `fewstep encode` wrote.")],
    cond: Annotated[
        str | None,
        typer.Option(help="Class to draw: cat, or one an image; by default the encoded ones."),
    ] = None,
    prompt: Prompt = None,
    w: Annotated[float, typer.Option(help="Guidance weight; 0 undoes encoding at 0.")] = 0.0,
    steps: Steps = None,
    out: Annotated[Path, typer.Option(help="PNG sheet, or a folder.")] = Path("decoded.png"),
    scale: Scale = 8,
    device: Device = None,
    guidance_scale: GuidanceScale = None,
) -> None:
    """Draw images from encoded noise: under their own class again, or under another."""
    refuse_guidance_scale(guidance_scale)
    from fewstep.cli.pictures import (
        BATCH,
        check_out,
        open_model,
        save_pictures,
        settings_of,
    )
    from fewstep.edit import decode

    check_out(out)
    opened = open_model(model, device)
    z, told = read_noise(noise)
    if cond is None and prompt is None:
        cond, prompt = told.get("cond"), told.get("prompt")
    wanted = opened.cond(cond, prompt, len(z), "--cond")
    x = decode(opened.model, z.to(opened.device), wanted, w=w, steps=steps, batch_size=BATCH)
    settings = settings_of("decode", [opened], w=w, steps=steps or opened.card.steps, cond=cond)
    settings["prompt"] = prompt
    settings["encoded"] = told
    files = [Path(str(f)) for f in told.get("files", [f"{k}" for k in range(len(z))])]
    sheet = save_pictures(out, [], [opened.images(x)], files, settings, scale)
    say(f"{len(x)} images: {sheet}")


def read_noise(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """Return the noise, and how it was made. Raises FolderError for another file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FolderError(f"{path} does not exist; give a file that `fewstep encode` wrote.")
    try:
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {})["fewstep"])
            return file.get_tensor("z"), told
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise FolderError(
            f"{path} holds no encoded noise ({error}); give a file that `fewstep encode` wrote."
        ) from None


command = decode_command
