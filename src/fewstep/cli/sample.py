"""`fewstep sample`: images from a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.options import Device, GuidanceScale, class_ids, refuse_guidance_scale, say
from fewstep.errors import RangeError


def sample_command(
    model: Annotated[Path, typer.Argument(help="Folder of a model.")],
    cond: Annotated[
        str | None, typer.Option(help="Classes: 0,1,5-9 or cat,dog; by default one of each.")
    ] = None,
    w: Annotated[float, typer.Option(help="Guidance weight; 0 is none.")] = 1.0,
    steps: Annotated[
        int | None, typer.Option(help="Steps; by default what the model was made for.")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="deterministic, stochastic or heun.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="Images of each class.")] = 1,
    out: Annotated[Path, typer.Option(help="PNG file to write, a sheet.")] = Path("sample.png"),
    columns: Annotated[int, typer.Option(min=1, help="Images in a row of the sheet.")] = 10,
    scale: Annotated[int, typer.Option(min=1, help="Pixels a pixel.")] = 8,
    device: Device = None,
    guidance_scale: GuidanceScale = None,
) -> None:
    """Draw images of classes, as one PNG sheet that carries its settings."""
    refuse_guidance_scale(guidance_scale)
    if out.suffix.lower() != ".png":
        raise RangeError(
            f"--out {out}; the sheet is a PNG file. Name it {out.with_suffix('.png')}."
        )
    import torch

    from fewstep.core.sample import sample
    from fewstep.models import card_of, load
    from fewstep.recipes.sheet import contact_sheet, save_sheet

    loaded = load(model, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    card = card_of(loaded)
    classes = list(range(card.num_classes)) if cond is None else class_ids(cond, card.class_names)
    labels = torch.tensor(classes).repeat(count)
    images = sample(loaded, labels, w=w, steps=steps, seed=seed, sampler=sampler, batch_size=256)
    settings = {
        "model": card.name,
        "weights": card.weights_sha256,
        "cond": ",".join(map(str, classes)),
        "w": w,
        "steps": steps or card.steps,
        "seed": seed,
    }
    save_sheet(contact_sheet(images.cpu(), min(columns, len(labels)), scale), out, settings)
    say(f"{len(labels)} images: {out}")


command = sample_command
