"""`fewstep img2img`: images drawn anew from half way to noise."""

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


def img2img_command(
    model: Annotated[Path, typer.Argument(help="Folder of a student, or of a teacher.")],
    image: Image,
    cond: Cond = None,
    prompt: Prompt = None,
    strength: Annotated[
        float, typer.Option(help="Share of the steps that are made, up to 1: all of them.")
    ] = 0.5,
    w: W = 1.0,
    steps: Steps = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="PNG sheet, or a folder.")] = Path("img2img.png"),
    scale: Scale = 8,
    device: Device = None,
    guidance_scale: GuidanceScale = None,
) -> None:
    """Draw images anew under a class; at strength 1 nothing of them is left."""
    refuse_guidance_scale(guidance_scale)
    from fewstep.cli.pictures import (
        BATCH,
        check_out,
        open_model,
        open_pictures,
        save_pictures,
        settings_of,
    )
    from fewstep.edit import img2img

    check_out(out)
    opened = open_model(model, device)
    read = open_pictures(image, opened)
    wanted = opened.cond(cond, prompt, len(read.x), "--cond")
    told = {"prompt": prompt, "strength": strength, "w": w, "seed": seed}
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
    settings = settings_of("img2img", [opened], steps=steps or opened.card.steps, cond=cond, **told)
    sheet = save_pictures(out, [read.images], [opened.images(x)], read.files, settings, scale)
    say(f"{len(x)} images: {sheet}")


command = img2img_command
