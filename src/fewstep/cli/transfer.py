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
        str | None,
        typer.Option("--from", help="Class of the images: cat, or one an image; or any."),
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="Classes to draw: dog, or several; a row each.")
    ] = None,
    from_prompt: Annotated[
        str | None, typer.Option(help="What the images show, for text-to-image models.")
    ] = None,
    to_prompt: Annotated[
        list[str] | None, typer.Option(help="What to draw; may be given several times.")
    ] = None,
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
    from fewstep.cli.pictures import (
        BATCH,
        check_out,
        open_model,
        open_pictures,
        save_pictures,
        settings_of,
    )
    from fewstep.edit import check_together, decode, encode
    from fewstep.models import encoders_kept

    check_out(out)
    one, two = open_model(encoder, device), open_model(decoder, device)
    check_together(one.model, two.model)
    read = open_pictures(image, one)
    count = len(read.x)
    # A row for each; where nothing is given, `cond` says what should be.
    prompts: list[str | None] = [*(to_prompt or [])] or [None]
    classes: list[int | None] = [None]
    if to is not None:
        classes = [*class_ids(to, two.card.class_names, "--to")]
    targets = [(None if k is None else str(k), p) for k in classes for p in prompts]
    with encoders_kept():
        cond = one.cond(from_, from_prompt, count, "--from")
        wanted = [two.cond(*target, count, "--to") for target in targets]
    z = encode(one.model, read.x, cond, w=w_from, steps=one.steps(steps), batch_size=BATCH)
    rows = [
        two.images(decode(two.model, z, target, w=w, steps=two.steps(steps), batch_size=BATCH))
        for target in wanted
    ]
    settings = settings_of("transfer", [one, two], w=w, w_from=w_from)
    settings |= {"from": from_ or from_prompt, "to": [k or p for k, p in targets]}
    settings["steps"] = [o.card.steps or steps for o in (one, two)]
    sheet = save_pictures(out, [read.images], rows, read.files, settings, scale)
    say(f"{count} images in {len(targets)} other ways: {sheet}")


command = transfer_command
