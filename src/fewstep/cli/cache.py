"""`fewstep cache`: a recipe's images as latents and conditions, encoded once."""

from __future__ import annotations

import typer

from fewstep.cli.options import (
    Device,
    Out,
    RecipeName,
    Set,
    Teachers,
    folders_of,
    load_run_recipe,
    run_folder,
    say,
)
from fewstep.errors import RecipeError


def cache_command(
    recipe: RecipeName,
    out: Out = None,
    teacher: Teachers = None,
    set_: Set = None,
    device: Device = None,
) -> None:
    """Encode the images and captions of a recipe into a cache.

    Run the same command again to continue where it stopped.

    `train`, `distill` and `report` do the same when they need it. This command prints beforehand
    how large the cache becomes, and needs only the folder of the encoders.
    """
    given = folders_of(teacher)
    checked = load_run_recipe(recipe, set_, given, out)
    folder = run_folder(recipe, out, checked)
    if checked.latents is None:
        raise RecipeError(
            f"{checked.name} works on images, and only a recipe with `latents:` has something to "
            "encode. Run `fewstep train` at once."
        )
    from fewstep.core.device import choose_device
    from fewstep.data import Buckets
    from fewstep.data.latents import Latents
    from fewstep.recipes.begun import check_folder
    from fewstep.recipes.run import Run
    from fewstep.recipes.workspace import Workspace, is_run

    place = choose_device(device)
    if is_run(folder):
        # The run's own teacher encodes, so the recipe must be one that can continue the run.
        check_folder(Workspace(checked, folder), ())
    if given:
        latents = checked.latents.model_copy(update={"folder": str(given[0])})
        checked = checked.model_copy(update={"latents": latents})
    data = Run(checked, folder, place, say).data.latents
    for part in data.parts if isinstance(data, Buckets) else (data,):
        assert isinstance(part, Latents)
        say(f"latents: {part.folder}")
        typer.echo(str(part.folder))


command = cache_command
