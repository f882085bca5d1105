"""`fewstep inpaint`: a part of images redrawn."""

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


def inpaint_command(
    model: Decoder,
    image: Image,
    mask: Annotated[
        list[Path],
        typer.Option(
            help="Opaque image, white where to draw and black where to keep, of the width and "
            "height of its image. One for all images, or one per image."
        ),
    ],
    cond: Cond = None,
    prompt: Prompt = None,
    strength: Annotated[
        float,
        typer.Option(
            help="Share of the steps to run, above 0 to 1; at 1 nothing of the masked part is left."
        ),
    ] = 1.0,
    w: W = 1.0,
    steps: Steps = None,
    seed: Seed = 0,
    out: OutSheet = Path("inpainted.png"),
    scale: Scale = None,
    overwrite: Overwrite = False,
    device: Device = None,
) -> None:
    """Redraw the masked part of images as a class or prompt.

    White in the mask is drawn anew, and the rest stays as it is.
    """
    check_out(out, overwrite, [*image, *mask])
    from fewstep.cli.masks import mask_files, read_masks
    from fewstep.edit import inpaint

    opened = open_model(model, device)
    read = open_pictures(image, opened)
    shape, count = opened.image_shape, len(read.x)
    sheet = Sheet.planned(out, shape, count, scale=scale, rows=3)
    masks = mask_files(mask, read.files, (shape[2], shape[1]))
    redrawn = read_masks(masks, opened.card.shape, count).to(opened.device)
    hidden = read_masks(masks, shape, count)
    wanted = opened.cond(cond, prompt, len(read.x), "--cond")
    x = inpaint(
        opened.model,
        read.x,
        redrawn,
        wanted,
        strength=strength,
        w=w,
        steps=steps,
        seed=seed,
        batch_size=BATCH,
    )
    arguments = {
        "steps": steps or opened.card.steps,
        "cond": cond,
        "prompt": prompt,
        "strength": strength,
        "w": w,
        "seed": seed,
        "masks": [m.name for m in masks],
    }
    settings, images = settings_of("inpaint", [opened], **arguments), opened.images(x)
    # Grey where something is drawn, between the sources and the results.
    hole = read.images * (1 - hidden)
    drawn = drawn_of([images], read.files, settings)
    say(f"{counted(count)}: {sheet.save([read.images, hole, images], drawn, settings)}")
    if opened.vae is not None:
        off = ((images.clamp(-1, 1) - read.images).abs() * (1 - hidden)).max() / 2
        say(
            "The autoencoder changes the unmasked part too: by at most "
            f"{float(off):.3f} of the range [0, 1] here."
        )


command = inpaint_command
