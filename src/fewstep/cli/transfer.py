"""`fewstep transfer`: images as another class, through their noise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.options import (
    Device,
    GuidanceScale,
    Image,
    Scale,
    Steps,
    W,
    class_ids,
    refuse_guidance_scale,
    say,
)


def transfer_command(
    encoder: Annotated[Path, typer.Argument(help="Folder of an encoder, or of a teacher.")],
    decoder: Annotated[Path, typer.Argument(help="Folder of a student, or of a teacher.")],
    image: Image,
    from_: Annotated[
        str, typer.Option("--from", help="Class of the images: cat, or one an image; or any.")
    ],
    to: Annotated[str, typer.Option(help="Classes to draw: dog, or several; a row each.")],
    w: W = 1.0,
    w_from: Annotated[float, typer.Option(help="Guidance weight of encoding.")] = 0.0,
    steps: Steps = None,
    out: Annotated[Path, typer.Option(help="PNG sheet, or a folder.")] = Path("transfer.png"),
    scale: Scale = 8,
    device: Device = None,
    guidance_scale: GuidanceScale = None,
) -> None:
    """Encode images under their class and decode them under others; sources above, side by side."""
    refuse_guidance_scale(guidance_scale)
    import torch

    from fewstep.cli.pictures import (
        BATCH,
        check_out,
        class_of_each,
        open_model,
        open_pictures,
        save_pictures,
        settings_of,
    )
    from fewstep.core.edit import check_together, decode, encode

    check_out(out)
    one, two = open_model(encoder, device), open_model(decoder, device)
    check_together(one.model, two.model)
    read = open_pictures(image, one)
    count = len(read.x)
    cond = class_of_each(from_, "--from", one.card, count)
    targets = class_ids(to, two.card.class_names, "--to")
    own = [None if o.card.steps else steps for o in (one, two)]
    z = encode(one.model, read.x, cond, w=w_from, steps=own[0], batch_size=BATCH)
    rows = []
    for target in targets:
        wanted = torch.full((count,), target)
        rows.append(decode(two.model, z, wanted, w=w, steps=own[1], batch_size=BATCH))
    settings = settings_of("transfer", [one, two], w=w, w_from=w_from, to=targets)
    settings |= {"from": cond.tolist(), "steps": [o.card.steps or steps for o in (one, two)]}
    sheet = save_pictures(out, [read.x], rows, read.files, settings, scale)
    say(f"{count} images as {len(targets)} classes: {sheet}")


command = transfer_command
