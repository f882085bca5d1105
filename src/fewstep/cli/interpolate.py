"""`fewstep interpolate`: from one image to another, through their noise."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli.options import (
    Device,
    GuidanceScale,
    Image,
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
    cond: Annotated[str, typer.Option(help="Class of the two images: cat, or cat,dog; or any.")],
    to: Annotated[
        str | None, typer.Option(help="Class to draw; by default the first image's.")
    ] = None,
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
    from fewstep.cli.pictures import class_of_each, open_model, open_pictures, settings_of
    from fewstep.core.edit import check_together, decode, encode, interpolate
    from fewstep.recipes.sheet import contact_sheet, save_sheet

    one, two = open_model(encoder, device), open_model(decoder, device)
    check_together(one.model, two.model)
    read = open_pictures(image, one)
    if len(read.x) != 2:
        raise RangeError(f"{len(read.x)} images; an interpolation is between 2. Give two --image.")
    classes = class_of_each(cond, "--cond", one.card, 2)
    own = [None if o.card.steps else steps for o in (one, two)]
    ends = encode(one.model, read.x, classes, steps=own[0])
    z = interpolate(ends[0], ends[1], count)
    wanted = classes[:1].expand(count)
    if to is not None:
        wanted = class_of_each(to, "--to", two.card, count)
    x = decode(two.model, z, wanted, w=w, steps=own[1]).cpu()
    if out.suffix.lower() == ".gif":
        _save_gif(x, out, scale)
    else:
        settings = settings_of("interpolate", [one, two], w=w, cond=classes.tolist())
        settings |= {"to": wanted.tolist(), "files": [f.name for f in read.files]}
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
