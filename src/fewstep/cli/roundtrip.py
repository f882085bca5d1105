"""`fewstep roundtrip`: how well images come back from noise, and as another class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.options import Device, GuidanceScale, numbers, refuse_guidance_scale, say


def roundtrip_command(
    models: Annotated[
        list[Path], typer.Argument(help="Folders of encoders and of students of equal steps.")
    ],
    teacher: Annotated[Path, typer.Option(help="Whose DDIM inversion they are compared with.")],
    reference: Annotated[
        str | None,
        typer.Option(help="The images; by default those of the training. Held-out ones are used."),
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Folder of a classifier (fewstep features train).")
    ] = None,
    w: Annotated[str, typer.Option(help="Guidance weights, e.g. 0,1,2,4.")] = "0,1,2,4",
    samples: Annotated[int, typer.Option(min=2, help="Images, at most.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the fresh samples.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("roundtrip"),
    device: Device = None,
    guidance_scale: GuidanceScale = None,
) -> None:
    """Measure encoding and decoding; rows that are kept in --out are not measured again."""
    refuse_guidance_scale(guidance_scale)
    weights = numbers(w, "--w")
    from fewstep.atomic import atomic_write
    from fewstep.cli.evaluate import training_data
    from fewstep.models import read_card
    from fewstep.recipes.evaluate import Evaluation
    from fewstep.recipes.roundtrip import RoundTrip, open_ways, sheets
    from fewstep.recipes.run import default_device
    from fewstep.recipes.sheet import save_sheet
    from fewstep.recipes.tables import aligned, comma_separated, markdown

    place = device or default_device()
    data = training_data([read_card(folder) for folder in [*models, teacher]], reference, models[0])
    evaluation = Evaluation(data, out, samples, seed, 250, features, place, say)
    trip = RoundTrip(evaluation, samples)
    ways = open_ways(models, teacher, place)
    rows = [trip.row(way, value) for value in weights for way in ways]
    for name, text in {
        "roundtrip.json": json.dumps(rows, indent=1) + "\n",
        "table.md": markdown(rows),
        "table.csv": comma_separated(rows),
    }.items():
        atomic_write(out / name, text.encode())
    for value in weights:
        for name, (sheet, labels) in sheets(trip, ways, value).items():
            save_sheet(sheet, out / f"{name}-w{value:g}.png", {"w": value, "rows": labels})
    typer.echo(aligned(rows))
    say(f"rows: {out / 'roundtrip.json'}; table.md, table.csv and sheets beside it")


command = roundtrip_command
