"""`fewstep interpolate`: images between two images, through their noise."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.options import (
    Cond,
    Decoder,
    Device,
    Encoder,
    Image,
    Overwrite,
    Prompt,
    Scale,
    Steps,
    WFrom,
    say,
)
from fewstep.cli.out import KEY, check_out
from fewstep.cli.pictures import BATCH, Sheet, open_model, open_pictures, settings_of
from fewstep.errors import RangeError

if TYPE_CHECKING:
    from torch import Tensor


def interpolate_command(
    encoder: Encoder,
    decoder: Decoder,
    image: Image,
    cond: Cond = None,
    prompt: Prompt = None,
    to: Annotated[
        str | None,
        typer.Option(help="Class to draw, or any; by default the class of the first image."),
    ] = None,
    to_prompt: Annotated[
        str | None,
        typer.Option(help="Prompt to draw, for text-to-image models; by default --prompt."),
    ] = None,
    w: Annotated[float, typer.Option(help="Guidance weight w of decoding.")] = 0.0,
    w_from: WFrom = 0.0,
    count: Annotated[
        int, typer.Option(min=2, max=10_000, help="Number of images, both ends included.")
    ] = 9,
    steps: Steps = None,
    out: Annotated[Path, typer.Option(help="A PNG file for a strip, or a GIF.")] = Path(
        "interpolation.png"
    ),
    scale: Scale = None,
    overwrite: Overwrite = False,
    device: Device = None,
) -> None:
    """Encode two images, interpolate their noise, and decode."""
    check_out(out, overwrite, image, (".png", ".gif"), folder=False)
    from fewstep.core.cond import repeat_null, take
    from fewstep.edit import check_together, decode, encode, interpolate

    one, two = open_model(encoder, device), open_model(decoder, device)
    check_together(one.model, two.model)
    one.check_w_from(w_from)
    read = open_pictures(image, one)
    if len(read.x) != 2:
        raise RangeError(
            f"an interpolation is between 2 images, got {len(read.x)}. Pass --image twice."
        )
    sheet = Sheet.planned(out, two.image_shape, count, scale=scale, columns=count)
    shown = one.cond(cond, prompt, 2, "--cond")
    ends = encode(one.model, read.x, shown, w=w_from, steps=one.steps(steps))
    z = interpolate(ends[0], ends[1], count)
    wanted = repeat_null(take(shown, slice(0, 1)), count)
    if to is not None or to_prompt is not None:
        wanted = two.cond(to, to_prompt, count, "--to")
    x = decode(two.model, z, wanted, w=w, steps=two.steps(steps), batch_size=BATCH)
    images = two.images(x)
    settings = settings_of("interpolate", [one, two], w=w, w_from=w_from, cond=cond or prompt)
    settings |= {"to": to or to_prompt, "files": [f.name for f in read.files]}
    if out.suffix.lower() == ".gif":
        _save_gif(images, out, sheet.scale, settings)
    else:
        sheet.save([images], [], settings)
    say(f"{count} images from {read.files[0].name} to {read.files[1].name}: {out}")


def _save_gif(images: Tensor, out: Path, scale: int, settings: dict[str, Any]) -> None:
    """Write a GIF that plays forward, then backward, and repeats."""
    from fewstep.atomic import atomic_write
    from fewstep.show.sheet import contact_sheet

    frames = [contact_sheet(image[None], 1, scale) for image in images]
    frames += frames[-2:0:-1]
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        duration=120,
        loop=0,
        disposal=2,
        comment=f"{KEY}{json.dumps(settings)}".encode(),
    )
    atomic_write(out, buffer.getvalue())


command = interpolate_command
