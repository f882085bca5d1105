"""`fewstep encode`: the noise that images are decoded from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.options import (
    Cond,
    Device,
    Encoder,
    Image,
    Overwrite,
    Prompt,
    Steps,
    say,
)
from fewstep.cli.out import KEY, check_out
from fewstep.cli.pictures import BATCH, counted, open_model, open_pictures, settings_of

SUFFIX = ".safetensors"


def encode_command(
    model: Encoder,
    image: Image,
    cond: Cond = None,
    prompt: Prompt = None,
    w: Annotated[float, typer.Option(help="Guidance weight w; usually 0 for encoding.")] = 0.0,
    steps: Steps = None,
    out: Annotated[Path, typer.Option(help="A .safetensors file.")] = Path("noise.safetensors"),
    overwrite: Overwrite = False,
    device: Device = None,
) -> None:
    """Encode images to the noise that `decode` draws them from."""
    check_out(out, overwrite, image, (SUFFIX,), folder=False)
    from safetensors.torch import save

    from fewstep.atomic import atomic_write
    from fewstep.edit import encode

    opened = open_model(model, device)
    read = open_pictures(image, opened)
    shown = opened.cond(cond, prompt, len(read.x), "--cond")
    z = encode(opened.model, read.x, shown, w=w, steps=steps, batch_size=BATCH)
    settings = settings_of("encode", [opened], w=w, steps=steps or opened.card.steps, cond=cond)
    settings |= {"prompt": prompt, "files": [f.name for f in read.files]}
    data = save({"z": z.cpu().contiguous()}, metadata={KEY: json.dumps(settings)})
    atomic_write(out, data)
    say(f"noise of {counted(len(z))}: {out}")


command = encode_command
