"""`fewstep encode`: images to their noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.options import (
    Cond,
    Device,
    GuidanceScale,
    Image,
    Prompt,
    Steps,
    refuse_guidance_scale,
    say,
)
from fewstep.errors import RangeError

SUFFIX = ".safetensors"


def encode_command(
    model: Annotated[Path, typer.Argument(help="Folder of an encoder, or of a teacher.")],
    image: Image,
    cond: Cond = None,
    prompt: Prompt = None,
    w: Annotated[float, typer.Option(help="Guidance weight; 0 is usual here.")] = 0.0,
    steps: Steps = None,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("noise.safetensors"),
    device: Device = None,
    guidance_scale: GuidanceScale = None,
) -> None:
    """Carry images to the noise that they come from; `fewstep decode` draws them again."""
    refuse_guidance_scale(guidance_scale)
    if out.suffix != SUFFIX:
        raise RangeError(
            f"--out {out}; noise is kept as safetensors. Name it {out.with_suffix(SUFFIX)}."
        )
    from safetensors.torch import save

    from fewstep.atomic import atomic_write
    from fewstep.cli.pictures import BATCH, open_model, open_pictures, settings_of
    from fewstep.edit import encode

    opened = open_model(model, device)
    read = open_pictures(image, opened)
    shown = opened.cond(cond, prompt, len(read.x), "--cond")
    z = encode(opened.model, read.x, shown, w=w, steps=steps, batch_size=BATCH)
    told = settings_of("encode", [opened], w=w, steps=steps or opened.card.steps, cond=cond)
    told |= {"prompt": prompt, "files": [f.name for f in read.files]}
    kept = {"z": z.cpu().contiguous()}
    atomic_write(out, save(kept, metadata={"fewstep": json.dumps(told)}))
    say(f"noise of {len(z)} images: {out}")


command = encode_command
