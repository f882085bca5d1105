"""`fewstep roundtrip`: how well images come back from their noise, and as another class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.options import (
    LARGEST_SEED,
    Device,
    Results,
    WList,
    numbers,
    say,
)
from fewstep.cli.out import check_results

TABLES = ("roundtrip.json", "table.md", "table.csv")


def roundtrip_command(
    models: Annotated[
        list[Path],
        typer.Argument(help="Folders of encoders and of students with the same numbers of steps."),
    ],
    teacher: Annotated[
        Path, typer.Option(help="Folder of the model whose DDIM inversion they are compared with.")
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            help="Images to encode: a folder, a parquet file or digits; the held-out part is used. "
            "By default the training images, where the models name them."
        ),
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Folder of a classifier (fewstep features train).")
    ] = None,
    w: WList = "0,1,2,4",
    samples: Annotated[int, typer.Option(min=2, max=10_000_000, help="Images at most.")] = 1000,
    seed: Annotated[
        int, typer.Option(min=-LARGEST_SEED, max=LARGEST_SEED, help="Seed of the fresh samples.")
    ] = 0,
    out: Results = Path("roundtrip"),
    device: Device = None,
) -> None:
    """Measure encoding and decoding images back.

    Rows that are kept in --out are not measured again.
    """
    ws = list(dict.fromkeys(numbers(w, "--w")))
    from fewstep.atomic import atomic_write
    from fewstep.cli.evaluate import training_data
    from fewstep.core.device import choose_device
    from fewstep.folders import card_in
    from fewstep.lock import writer_of
    from fewstep.measure.evaluate import Evaluation
    from fewstep.measure.roundtrip import RoundTrip, open_ways
    from fewstep.show.roundtrip_sheets import sheets
    from fewstep.show.sheet import save_sheet
    from fewstep.show.tables import aligned, comma_separated, markdown

    place = choose_device(device)
    check_results(out, TABLES)
    data = training_data([card_in(folder) for folder in [*models, teacher]], reference, models[0])
    with writer_of(out):
        evaluation = Evaluation(data, out, samples, seed, 250, features, place, say)
        trip = RoundTrip(evaluation, samples)
        ways = open_ways(models, teacher, place)
        rows = [trip.cell(way, value).row for value in ws for way in ways]
        texts = (json.dumps(rows, indent=1) + "\n", markdown(rows), comma_separated(rows))
        for name, text in zip(TABLES, texts, strict=True):
            atomic_write(out / name, text.encode())
        for value in ws:
            for name, (sheet, labels) in sheets(trip, ways, value).items():
                save_sheet(sheet, out / f"{name}-w{value:g}.png", {"w": value, "rows": labels})
    typer.echo(aligned(rows))
    say(f"rows: {out / 'roundtrip.json'}; table.md, table.csv and sheets beside it")


command = roundtrip_command
