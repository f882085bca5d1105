"""`fewstep transfer`: encode images under one class and decode them under another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli.options import (
    Decoder,
    Device,
    Encoder,
    Image,
    OutSheet,
    Overwrite,
    Scale,
    Steps,
    W,
    WFrom,
    say,
)
from fewstep.cli.out import check_out
from fewstep.cli.pictures import (
    BATCH,
    Opened,
    Sheet,
    counted,
    drawn_of,
    open_model,
    open_pictures,
    settings_of,
)
from fewstep.errors import ShapeError

if TYPE_CHECKING:
    from fewstep.core.cond import Cond


def transfer_command(
    encoder: Encoder,
    decoder: Decoder,
    image: Image,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Class of the images: one for all (cat, or 3), one per image (cat,dog), or any.",
        ),
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="Classes to draw, one row each: dog, or 3,5-9, or any.")
    ] = None,
    from_prompt: Annotated[
        str | None, typer.Option(help="Prompt of the images, for text-to-image models.")
    ] = None,
    to_prompt: Annotated[
        list[str] | None,
        typer.Option(help="Prompt to draw, one row each. May be given several times."),
    ] = None,
    w: W = 1.0,
    w_from: WFrom = 0.0,
    steps: Steps = None,
    out: OutSheet = Path("transfer.png"),
    scale: Scale = None,
    overwrite: Overwrite = False,
    device: Device = None,
) -> None:
    """Encode images under one class and decode under others.

    The sheet shows each result below its source.
    """
    check_out(out, overwrite, image)
    from fewstep.edit import check_together, decode, encode
    from fewstep.models import encoders_kept

    one, two = open_model(encoder, device), open_model(decoder, device)
    check_together(one.model, two.model)
    if one.image_shape != two.image_shape:
        raise ShapeError(
            f"encoder and decoder must draw images of one shape, got {one.image_shape} and "
            f"{two.image_shape}. Use two models with one autoencoder."
        )
    one.check_w_from(w_from)
    read = open_pictures(image, one)
    count = len(read.x)
    with encoders_kept():
        shown = one.cond(from_, from_prompt, count, "--from")
        targets = _targets(two, to, to_prompt or [], count)
    sheet = Sheet.planned(out, two.image_shape, count, scale=scale, rows=1 + len(targets))
    z = encode(one.model, read.x, shown, w=w_from, steps=one.steps(steps), batch_size=BATCH)
    rows = [
        two.images(decode(two.model, z, target, w=w, steps=two.steps(steps), batch_size=BATCH))
        for _, target in targets
    ]
    settings = settings_of("transfer", [one, two], w=w, w_from=w_from)
    settings |= {"from": from_ or from_prompt, "to": [name for name, _ in targets]}
    settings["steps"] = [o.card.steps or steps for o in (one, two)]
    drawn = drawn_of(rows, read.files, settings)
    written = sheet.save([read.images, *rows], drawn, settings)
    ways = "1 other way" if len(targets) == 1 else f"{len(targets)} other ways"
    say(f"{counted(count)}, each drawn in {ways}: {written}")


def _targets(
    decoder: Opened, to: str | None, prompts: list[str], count: int
) -> list[tuple[str, Cond]]:
    """Return what to draw in each row: its name, and a condition batch of `count`."""
    import torch

    if (to is None) == (not prompts):
        raise decoder.wrong_kind("--to")
    if to is None:
        return [(p, decoder.cond(None, p, count, "--to")) for p in prompts]
    if decoder.takes_text:
        raise decoder.wrong_kind("--to")
    ids = decoder.classes.ids(to, "--to")
    return [(str(k), torch.full((count,), k)) for k in ids]


command = transfer_command
