"""`fewstep train`: the guided teacher."""

from __future__ import annotations

from fewstep.cli.options import (
    Device,
    For,
    Out,
    PushToHub,
    RecipeName,
    Set,
    Track,
    load_run_recipe,
    run_folder,
    say,
)


def train_command(
    recipe: RecipeName,
    out: Out = None,
    set_: Set = None,
    device: Device = None,
    track: Track = None,
    push_to_hub: PushToHub = None,
    _for: For = None,
) -> None:
    """Train the guided teacher of a recipe.

    Run the same command again to continue where it stopped. With more updates (--set
    teacher.updates=N) it trains a finished teacher further.
    """
    checked = load_run_recipe(recipe, set_, track=track)
    folder = run_folder(recipe, out, checked)
    from fewstep.core.device import choose_device
    from fewstep.distill.plan import TEACHER
    from fewstep.files.hub import check_push, push
    from fewstep.recipes.run import Run

    run = Run(checked, folder, choose_device(device), say)
    if push_to_hub is not None:
        check_push(push_to_hub)
    with run.writing([TEACHER]):
        run.train_teacher()
    run.tell(f"teacher: {run.folder(TEACHER)}")
    if push_to_hub is not None and run.is_main:
        say(f"pushed: {push(run.folder(TEACHER), push_to_hub)}")


command = train_command
