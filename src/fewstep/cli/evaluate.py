"""`fewstep evaluate`: figures of model folders, as a database, tables, plots and sheets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.options import (
    Device,
    GuidanceScale,
    numbers,
    refuse_guidance_scale,
    say,
    whole,
)
from fewstep.errors import FolderError, RangeError

if TYPE_CHECKING:
    from fewstep.data import DataConfig
    from fewstep.models import Card
    from fewstep.recipes.evaluate import Cell, Evaluation

SHEET = 20  # images of each cell that a sheet shows


def evaluate_command(
    models: Annotated[list[Path], typer.Argument(help="Folders of models.")],
    reference: Annotated[
        str | None,
        typer.Option(help="The images to compare with; by default those of the training."),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="What to look through: a transformers vision folder, or Inception's weights file."
        ),
    ] = None,
    w: Annotated[str, typer.Option(help="Guidance weights, e.g. 0,1,2,4.")] = "0,1,2,4",
    steps: Annotated[
        str | None,
        typer.Option(help="Steps, e.g. 1,2,4, for models that can take any."),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="For models that can take any: deterministic,heun,dpm-solver++,unipc, ..."
        ),
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Many-step reference of the paired distance.")
    ] = None,
    reference_steps: Annotated[int, typer.Option(min=1, help="Steps of that reference.")] = 256,
    samples: Annotated[int, typer.Option(min=2, help="Images a cell.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the noise, the same in every cell.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the cells.")] = Path("evaluation"),
    device: Device = None,
    guidance_scale: GuidanceScale = None,
) -> None:
    """Measure models; cells that are kept in --out are not measured again."""
    refuse_guidance_scale(guidance_scale)
    weights = numbers(w, "--w")
    counts = None if steps is None else whole(steps, "--steps")
    samplers: list[str | None] = [None]
    if sampler is not None:
        samplers = [s.strip() for s in sampler.split(",")]
    from fewstep.models import read_card
    from fewstep.recipes.evaluate import Evaluation
    from fewstep.recipes.run import default_device

    cards = [read_card(folder) for folder in models]
    for card in cards:
        if card.steps is None and counts is None:
            raise RangeError(f"{card.name} can take any number of steps; say which: --steps 64.")
    place = device or default_device()
    data = training_data(cards, reference, models[0])
    evaluation = Evaluation(data, out, samples, seed, min(500, samples), features, place, say)
    cells = _measure(evaluation, models, weights, counts, samplers, teacher, reference_steps)
    _write(out, cells)


def training_data(cards: list[Card], reference: str | None, folder: Path) -> DataConfig:
    """Return the images of the models' training, from where they are now.

    folder: of the model of the first card.
    """
    from fewstep.data import DATASETS, DataConfig, open_dataset

    names = {str(c.training.get("data")) for c in cards}
    if reference is None and len(names) != 1:
        raise FolderError(
            f"the models were made on different data: {', '.join(sorted(names))}. Say which to "
            "compare with: --reference."
        )
    card, name = cards[0], reference or names.pop()
    if name in DATASETS:
        return DataConfig(name=name)
    if reference is None:
        raise FolderError(
            f"the models were made on images called {name!r}; say where they are: "
            f"--reference path/to/{name}."
        )
    from fewstep.models import image_shape

    shape = image_shape(folder, card)
    kept: Any = card.training.get("images")
    if kept is None:
        kept = {"size": shape[-1], "channels": shape[0]}
    config = DataConfig(**{**kept, "name": name})
    train = open_dataset(config, "train")
    if train.shape != shape:
        raise FolderError(
            f"{name} has images of shape {train.shape} and {card.name} makes {shape}; they "
            "must be alike. Give images that it could have made."
        )
    if train.content_hash() != str(card.training.get("data_sha256")):
        say(f"{name}: other images than those of the training")
    return config


def _measure(
    evaluation: Evaluation,
    models: list[Path],
    weights: list[float],
    counts: list[int] | None,
    samplers: list[str | None],
    teacher: Path | None,
    reference_steps: int,
) -> list[Cell]:
    from fewstep.models import card_of, load

    guide = None if teacher is None else load(teacher, evaluation.device)
    cells = []
    for folder in models:
        model = load(folder, evaluation.device)
        card = card_of(model)
        for value in weights:
            reference = None
            if guide is not None:
                reference = evaluation.cell("teacher", guide, w=value, steps=reference_steps)
            for count in [card.steps] if card.steps is not None else counts or []:
                for sampler in samplers if card.steps is None else samplers[:1]:
                    cell = evaluation.cell(
                        card.name, model, w=value, steps=count, sampler=sampler, teacher=reference
                    )
                    cells.append(cell)
    return cells


def _write(out: Path, cells: list[Cell]) -> None:
    from fewstep.atomic import atomic_write
    from fewstep.recipes.figures import write_figures
    from fewstep.recipes.tables import aligned

    rows: list[dict[str, Any]] = [cell.row for cell in cells]
    sheets = {
        w: [cell.images[:SHEET] for cell in cells if cell.row["w"] == w]
        for w in sorted({row["w"] for row in rows})
    }
    write_figures(out, rows, sheets)
    atomic_write(out / "evaluation.json", (json.dumps(rows, indent=1) + "\n").encode())
    typer.echo(aligned(rows))
    say(f"rows: {out / 'evaluation.json'}; table.md, table.csv, plots and sheets beside it")


command = evaluate_command
