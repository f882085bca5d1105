"""`fewstep img2img`: images redrawn after noise was added to them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.options import (
    Cond,
    Decoder,
    Device,
    Image,
    OutSheet,
    Overwrite,
    Prompt,
    Scale,
    Seed,
    Steps,
    W,
    say,
)
from fewstep.cli.out import check_out
from fewstep.cli.pictures import (
    BATCH,
    Sheet,
    counted,
    drawn_of,
    open_model,
    open_pictures,
    settings_of,
)


def img2img_command(
    model: Decoder,
    image: Image,
    cond: Cond = None,
    prompt: Prompt = None,
    strength: Annotated[
        float,
        typer.Option(
            help="Share of the steps to run, above 0 to 1; at 1 nothing of the image is left."
        ),
    ] = 0.5,
    w: W = 1.0,
    steps: Steps = None,
    seed: Seed = 0,
    out: OutSheet = Path("img2img.png"),
    scale: Scale = None,
    overwrite: Overwrite = False,
    device: Device = None,
) -> None:
    """Redraw images as a class or prompt (image-to-image)."""
    check_out(out, overwrite, image)
    from fewstep.edit import img2img

    opened = open_model(model, device)
    read = open_pictures(image, opened)
    sheet = Sheet.planned(out, opened.image_shape, len(read.x), scale=scale, rows=2)
    wanted = opened.cond(cond, prompt, len(read.x), "--cond")
    arguments = {"prompt": prompt, "strength": strength, "w": w, "seed": seed}
    x = img2img(
        opened.model,
        read.x,
        wanted,
        strength=strength,
        w=w,
        steps=steps,
        seed=seed,
        batch_size=BATCH,
    )
    arguments |= {"steps": steps or opened.card.steps, "cond": cond}
    settings, images = settings_of("img2img", [opened], **arguments), opened.images(x)
    drawn = drawn_of([images], read.files, settings)
    say(f"{counted(len(x))}: {sheet.save([read.images, images], drawn, settings)}")


command = img2img_command
