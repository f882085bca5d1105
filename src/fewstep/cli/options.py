"""What several commands share: their options, and parsing of lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.errors import RangeError, did_you_mean

if TYPE_CHECKING:
    from fewstep.recipes.config import Recipe

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. distill.lr=1e-3."),
]
Out = Annotated[Path | None, typer.Option(help="Folder of the run; by default runs/<recipe>.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; by default what there is.")]
RecipeName = Annotated[str, typer.Argument(help="Name of a built-in recipe, or a YAML file.")]
GuidanceScale = Annotated[float | None, typer.Option("--guidance-scale", hidden=True)]
Image = Annotated[
    list[Path],
    typer.Option(help="An image, or a folder of images; may be given several times."),
]
Cond = Annotated[
    str | None, typer.Option(help="Class: cat or 3, or with commas one an image; or any.")
]
Prompt = Annotated[str | None, typer.Option(help="In place of a class, for text-to-image models.")]
W = Annotated[float, typer.Option(help="Guidance weight; 0 is none.")]
Steps = Annotated[int | None, typer.Option(help="Steps; by default what the model was made for.")]
Teachers = Annotated[
    list[Path] | None,
    typer.Option(
        "--teacher",
        help="Folder of a finished teacher, or of a stage one, to start from; by default the "
        "run's own. May be given for both.",
    ),
]
Seed = Annotated[int, typer.Option(help="Of the noise.")]
Scale = Annotated[int, typer.Option(min=1, help="Pixels of the sheet a pixel.")]


def say(line: str) -> None:
    """Print a line of progress, at once."""
    typer.echo(line, err=True)


def refuse_guidance_scale(value: float | None) -> None:
    """Raise RangeError where someone gave the other convention's number."""
    if value is not None:
        raise RangeError(
            f"fewstep uses w = guidance scale - 1; you probably mean --w {value - 1:g}."
        )


def numbers(text: str, option: str) -> list[float]:
    """Return the numbers of "0,1,2.5". Raises RangeError for anything else."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise RangeError(f"{option} {text!r}; give numbers with commas between: 0,1,2.5.") from None


def whole(text: str, option: str) -> list[int]:
    """Return the whole numbers of "0,1,5-9". Raises RangeError for anything else."""
    out: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            out.extend(range(int(first), int(last) + 1) if dash else [int(part)])
    except ValueError:
        raise RangeError(f"{option} {text!r}; give whole numbers: 0,1,5-9.") from None
    return out


def load_run_recipe(name: str, overrides: list[str] | None) -> Recipe:
    """Return the recipe of a command, checked."""
    from fewstep.recipes.config import load_recipe

    return load_recipe(name, overrides or ())


def class_ids(text: str, names: Sequence[str], option: str = "--cond") -> list[int]:
    """Return the ids of "cat,dog" or "0,5-9". Raises RangeError for a name that is not there."""
    parts = [part.strip() for part in text.split(",")]
    if all(part in names for part in parts):
        return [names.index(part) for part in parts]
    words = [part for part in parts if not part.replace("-", "").isdigit()]
    unknown = [word for word in words if word not in names]
    if not unknown:
        return whole(text, option)
    hint = did_you_mean(unknown[0], names)
    raise RangeError(
        f"{option} {text!r}: {unknown[0]!r} is no class of this model.{hint}"
        f" Its classes are {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}; or give "
        "whole numbers: 0,1,5-9."
    )
