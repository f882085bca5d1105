"""`fewstep inpaint`: a part of images drawn anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.options import (
    Cond,
    Device,
    GuidanceScale,
    Image,
    Prompt,
    Scale,
    Seed,
    Steps,
    W,
    refuse_guidance_scale,
    say,
)
from fewstep.errors import RangeError


def inpaint_command(
    model: Annotated[Path, typer.Argument(help="Folder of a student, or of a teacher.")],
    image: Image,
    mask: Annotated[
        list[Path],
        typer.Option(help="Image that is white where to draw; one, or one an image."),
    ],
    cond: Cond = None,
    prompt: Prompt = None,
    strength: Annotated[
        float, typer.Option(help="How much of the masked part is forgotten, up to 1: all.")
    ] = 1.0,
    w: W = 1.0,
    steps: Steps = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="PNG sheet, or a folder.")] = Path("inpainted.png"),
    scale: Scale = 8,
    device: Device = None,
    guidance_scale: GuidanceScale = None,
) -> None:
    """Draw the white part of a mask anew under a class; the rest stays as it is."""
    refuse_guidance_scale(guidance_scale)
    from fewstep.cli.pictures import (
        BATCH,
        check_out,
        open_model,
        open_pictures,
        save_pictures,
        settings_of,
    )
    from fewstep.data import image_files, read_images
    from fewstep.edit import inpaint

    check_out(out)
    opened = open_model(model, device)
    read = open_pictures(image, opened)
    masks = image_files(mask)
    if len(masks) not in (1, len(read.x)):
        raise RangeError(f"{len(masks)} masks for {len(read.x)} images; give one, or one an image.")
    drawn = (read_images(masks, (1, *opened.card.shape[1:])) > 0).float().to(opened.device)
    hidden = (read_images(masks, (1, *opened.image_shape[1:])) > 0).float()
    wanted = opened.cond(cond, prompt, len(read.x), "--cond")
    x = inpaint(
        opened.model,
        read.x,
        drawn.expand(len(read.x), -1, -1, -1),
        wanted,
        strength=strength,
        w=w,
        steps=steps,
        seed=seed,
        batch_size=BATCH,
    )
    told = {
        "prompt": prompt,
        "strength": strength,
        "w": w,
        "seed": seed,
        "masks": [m.name for m in masks],
    }
    settings = settings_of("inpaint", [opened], steps=steps or opened.card.steps, cond=cond, **told)
    # Grey where something is drawn, between what was there and what is there now.
    hole = read.images * (1 - hidden)
    images = opened.images(x)
    sheet = save_pictures(out, [read.images, hole], [images], read.files, settings, scale)
    say(f"{len(x)} images: {sheet}")
    if opened.vae is not None:
        off = ((images.clamp(-1, 1) - read.images).abs() * (1 - hidden)).max() / 2
        say(
            f"what was kept went through the autoencoder too; it is off by {float(off):.3f} of "
            "[0, 1] at most"
        )


command = inpaint_command
