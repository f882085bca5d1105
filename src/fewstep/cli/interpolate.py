"""`fewstep interpolate`: from one image to another, through their noise."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli.options import (
    Cond,
    Device,
    GuidanceScale,
    Image,
    Prompt,
    Scale,
    Steps,
    refuse_guidance_scale,
    say,
)
from fewstep.errors import RangeError

if TYPE_CHECKING:
    from torch import Tensor


def interpolate_command(
    encoder: Annotated[Path, typer.Argument(help="Folder of an encoder, or of a teacher.")],
    decoder: Annotated[Path, typer.Argument(help="Folder of a student, or of a teacher.")],
    image: Image,
    cond: Cond = None,
    prompt: Prompt = None,
    to: Annotated[
        str | None, typer.Option(help="Class to draw; by default the first image's.")
    ] = None,
    to_prompt: Annotated[str | None, typer.Option(help="Prompt to draw, likewise.")] = None,
    w: Annotated[float, typer.Option(help="Guidance weight of decoding.")] = 0.0,
    count: Annotated[int, typer.Option(min=2, help="Images, both ends included.")] = 9,
    steps: Steps = None,
    out: Annotated[Path, typer.Option(help="PNG strip, or GIF.")] = Path("interpolation.png"),
    scale: Scale = 8,
    device: Device = None,
    guidance_scale: GuidanceScale = None,
) -> None:
    """Encode two images, go from one noise to the other on an arc, and decode what lies there."""
    refuse_guidance_scale(guidance_scale)
    if out.suffix.lower() not in (".png", ".gif"):
        raise RangeError(f"--out {out}; name a PNG file for a strip, or a GIF.")
    from fewstep.cli.pictures import open_model, open_pictures, settings_of
    from fewstep.core.cond import repeat_null, take
    from fewstep.edit import check_together, decode, encode, interpolate
    from fewstep.recipes.sheet import contact_sheet, save_sheet

    one, two = open_model(encoder, device), open_model(decoder, device)
    check_together(one.model, two.model)
    read = open_pictures(image, one)
    if len(read.x) != 2:
        raise RangeError(f"{len(read.x)} images; an interpolation is between 2. Give two --image.")
    shown = one.cond(cond, prompt, 2, "--cond")
    ends = encode(one.model, read.x, shown, steps=one.steps(steps))
    z = interpolate(ends[0], ends[1], count)
    wanted = repeat_null(take(shown, slice(0, 1)), count)
    if to is not None or to_prompt is not None:
        wanted = two.cond(to, to_prompt, count, "--to")
    x = two.images(decode(two.model, z, wanted, w=w, steps=two.steps(steps)))
    if out.suffix.lower() == ".gif":
        _save_gif(x, out, scale)
    else:
        settings = settings_of("interpolate", [one, two], w=w, cond=cond or prompt)
        settings |= {"to": to or to_prompt, "files": [f.name for f in read.files]}
        save_sheet(contact_sheet(x, count, scale), out, settings)
    say(f"{count} images from {read.files[0].name} to {read.files[1].name}: {out}")


def _save_gif(x: Tensor, out: Path, scale: int) -> None:
    """Write a GIF that goes there and back for ever."""
    from fewstep.atomic import atomic_write
    from fewstep.recipes.sheet import contact_sheet

    frames = [contact_sheet(x[k : k + 1], 1, scale) for k in range(len(x))]
    frames += frames[-2:0:-1]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], duration=120, loop=0, disposal=2
    )
    atomic_write(out, buffer.getvalue())


command = interpolate_command
