"""`fewstep evaluate`: figures of model folders, as a table and as JSON."""

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
    from fewstep.recipes.evaluate import Evaluation


def evaluate_command(
    models: Annotated[list[Path], typer.Argument(help="Folders of models.")],
    w: Annotated[str, typer.Option(help="Guidance weights, e.g. 0,1,2,4.")] = "0,1,2,4",
    steps: Annotated[
        str | None,
        typer.Option(help="Steps, e.g. 1,2,4, for models that can take any."),
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="For models that can take any.")] = None,
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
    from fewstep.models import read_card
    from fewstep.recipes.evaluate import Evaluation

    cards = [read_card(folder) for folder in models]
    data = {str(c.training.get("data")) for c in cards}
    if len(data) != 1:
        raise FolderError(f"the models were made on different data: {', '.join(sorted(data))}.")
    for card in cards:
        if card.steps is None and counts is None:
            raise RangeError(f"{card.name} can take any number of steps; say which: --steps 64.")
    evaluation = Evaluation(data.pop(), out, samples, seed, min(500, samples), say)
    rows = _measure(evaluation, models, weights, counts, sampler, teacher, reference_steps, device)
    from fewstep.atomic import atomic_write

    atomic_write(out / "evaluation.json", (json.dumps(rows, indent=1) + "\n").encode())
    typer.echo(table(rows))
    say(f"rows: {out / 'evaluation.json'}")


def _measure(
    evaluation: Evaluation,
    models: list[Path],
    weights: list[float],
    counts: list[int] | None,
    sampler: str | None,
    teacher: Path | None,
    reference_steps: int,
    device: str | None,
) -> list[dict[str, Any]]:
    from fewstep.models import card_of, load
    from fewstep.recipes.run import default_device

    place = device or default_device()
    guide = None if teacher is None else load(teacher, place)
    rows = []
    for folder in models:
        model = load(folder, place)
        card = card_of(model)
        for value in weights:
            reference = None
            if guide is not None:
                reference = evaluation.cell("teacher", guide, w=value, steps=reference_steps)
            for count in [card.steps] if card.steps is not None else counts or []:
                cell = evaluation.cell(
                    card.name, model, w=value, steps=count, sampler=sampler, teacher=reference
                )
                rows.append(cell.row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as aligned columns."""
    keys = list(rows[0])
    text = [keys, *([_cell(row[k]) for k in keys] for row in rows)]
    widths = [max(len(line[i]) for line in text) for i in range(len(keys))]
    return "\n".join(
        "  ".join(c.rjust(n) for c, n in zip(line, widths, strict=True)) for line in text
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


command = evaluate_command
