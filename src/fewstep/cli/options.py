"""Options that several commands share, and the parsing of their lists."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli.recipes import names_of
from fewstep.errors import NoDataError, RangeError
from fewstep.limit import seconds_of, time_limit

if TYPE_CHECKING:
    from fewstep.recipes.config import Recipe

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the recipe, for example distill.lr=1e-3.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the run; by default runs/RECIPE, or the run's own for its recipe.yaml."
    ),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N; by default a GPU where there is one.")
]
RecipeName = Annotated[
    str,
    typer.Argument(
        help="Name of a built-in recipe (`fewstep recipes`), a YAML file, or the folder of a run.",
        autocompletion=names_of,
    ),
]
Encoder = Annotated[Path, typer.Argument(help="Folder of an encoder, or of a teacher.")]
Decoder = Annotated[Path, typer.Argument(help="Folder of a student, or of a teacher.")]
Image = Annotated[
    list[Path],
    typer.Option(help="An image, or a folder of images. May be given several times."),
]
Cond = Annotated[
    str | None,
    typer.Option(
        help="What the images show or become: one class for all (cat, or 3), one per image "
        "(cat,dog,3-5), or any for no particular class."
    ),
]
Prompt = Annotated[str | None, typer.Option(help="Prompt, for text-to-image models.")]
W = Annotated[float, typer.Option(help="Guidance weight w; 0 is no guidance.")]
WFrom = Annotated[float, typer.Option(help="Guidance weight w of encoding.")]
WList = Annotated[str, typer.Option(help="Guidance weights, for example 0,1,2,4.")]
Results = Annotated[Path, typer.Option(help="Folder of the results.")]
Steps = Annotated[
    int | None,
    typer.Option(min=1, max=100_000, help="Sampling steps; the student's own number by default."),
]
OutSheet = Annotated[
    Path, typer.Option(help="A PNG file for one sheet, or a folder for the images as well.")
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace files at --out that fewstep did not draw. Without it, only pictures that "
        "fewstep drew before are replaced.",
    ),
]


def _limit_time(context: typer.Context, text: str | None) -> str | None:
    """Limit the time of the command from now on."""
    if text is not None:
        context.with_resource(time_limit(seconds_of(text, "--for")))
    return text


# The callback acts on it, so commands leave the value unused.
For = Annotated[
    str | None,
    typer.Option(
        "--for",
        callback=_limit_time,
        metavar="TIME",
        help="Stop after this time, for example 90s, 5m or 1h30m. What was done is kept, and the "
        "same command continues; the exit code is 75 until all is done.",
    ),
]
Track = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Send losses to accelerate's trackers, for example tensorboard,wandb; with --set "
        "track.images_every=500 samples too.",
    ),
]
PushToHub = Annotated[
    str | None,
    typer.Option(
        metavar="REPO",
        help="Also upload what was trained to the Hugging Face hub, as owner/name; of several "
        "students each as owner/name-STUDENT.",
    ),
]
Teachers = Annotated[
    list[Path] | None,
    typer.Option(
        "--teacher",
        help="Folder of a finished teacher, or of a finished stage one, to start from, a hub id, "
        "or a whole checkpoint (.safetensors); by default the run's own. May be repeated to give "
        "both.",
    ),
]
LARGEST_SEED = 2**63 - 1
Seed = Annotated[int, typer.Option(min=-LARGEST_SEED, max=LARGEST_SEED, help="Seed of the noise.")]
Scale = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=64,
        help="Enlarge each pixel of the sheet by this factor; by default up to 8, as long as an "
        "image stays within 512 pixels.",
    ),
]


MOST_NUMBERS = 10_000
RANGE = re.compile(r"([0-9]{1,18})(?:\s*-\s*([0-9]{1,18}))?")


def say(line: str) -> None:
    """Print a line of progress, at once."""
    typer.echo(line, err=True)


def numbers(text: str, option: str) -> list[float]:
    """Return the numbers of "0,1,2.5". Raises RangeError for anything else, NaN and infinity."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(map(math.isfinite, found)):
        raise RangeError(
            f"{option} must be finite numbers with commas between them, got {text!r}. Pass, for "
            f"example, {option} 0,1,2.5."
        )
    return found


def bounds(found: re.Match[str], option: str) -> tuple[int, int]:
    """Return the ends of a range such as 5-9. Raises RangeError where it falls."""
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first:
        raise RangeError(
            f"{option}: a range must go up, got {found[0]!r}. Use {last}-{first} instead."
        )
    return first, last


def whole(text: str, option: str) -> list[int]:
    """Return the whole numbers of "0,1,5-9". Raises RangeError for anything else.

    A range must not fall, and all together must be at most MOST_NUMBERS numbers.
    """
    out: list[int] = []
    for part in text.split(","):
        found = RANGE.fullmatch(part.strip())
        if found is None:
            raise RangeError(
                f"{option} must be whole numbers and ranges with commas between them, got "
                f"{text!r}. Pass, for example, {option} 0,1,5-9."
            )
        first, last = bounds(found, option)
        if last - first >= MOST_NUMBERS - len(out):
            raise RangeError(
                f"{option} must be at most {MOST_NUMBERS} numbers, got {text!r}. Use small ranges."
            )
        out.extend(range(first, last + 1))
    return out


def folders_of(models: Sequence[Path] | None) -> list[Path]:
    """Return the folders of models that are given as folders, hub ids or single files."""
    from fewstep.files.hub import local

    return [local(model) for model in models or ()]


def load_run_recipe(
    name: str,
    overrides: Sequence[str] | None,
    teachers: Sequence[Path] = (),
    out: Path | None = None,
    track: str | None = None,
) -> Recipe:
    """Return the recipe of a command, checked. track: names of trackers, with commas.

    A recipe without `data.name` takes the built-in data set that its teacher was trained on: that
    of --teacher, or of the run in `out`.
    """
    from fewstep.recipes.config import load_recipe

    settings = list(overrides or ())
    if track is not None:
        names = [part.strip() for part in track.split(",")]
        settings.append(f"track.trackers={json.dumps(names)}")
    try:
        return load_recipe(name, settings)
    except NoDataError:
        known = data_of(list(teachers) or ([] if out is None else [out / "teacher"]))
        if known is None:
            raise
        recipe = load_recipe(name, [*settings, f"data.name={known}"])
        say(f"data: {known}, as in the teacher's training (the recipe names no data)")
        return recipe


def data_of(teachers: Sequence[Path]) -> str | None:
    """Return the name of the built-in data set that a teacher was trained on, or None."""
    from fewstep.data import DATASETS
    from fewstep.folders import card_in

    for folder in teachers:
        if not folder.is_dir():
            continue
        name = str(card_in(folder).training.get("data"))
        if name in DATASETS:
            return name
    return None


def run_folder(name: str, out: Path | None, recipe: Recipe) -> Path:
    """Return the folder of a run: --out, or that of a run's own recipe.yaml, or runs/<recipe>."""
    if out is not None:
        return out
    from fewstep.recipes.config import RECIPE, recipe_path
    from fewstep.recipes.workspace import is_run

    path = recipe_path(name)
    if path.name == RECIPE and is_run(path.parent):
        say(f"run: {path.parent}, the folder of this recipe")
        return path.parent
    return Path("runs") / recipe.name
