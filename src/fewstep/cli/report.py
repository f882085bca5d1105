"""`fewstep report`: a complete recipe, from images to its report."""

from __future__ import annotations

from fewstep.cli.options import (
    Device,
    For,
    Out,
    RecipeName,
    Set,
    Teachers,
    Track,
    folders_of,
    load_run_recipe,
    run_folder,
    say,
)


def report_command(
    recipe: RecipeName,
    out: Out = None,
    teacher: Teachers = None,
    set_: Set = None,
    device: Device = None,
    track: Track = None,
    _for: For = None,
) -> None:
    """Run a whole recipe: train, distil, measure.

    Writes report.html, tables and plots. What `train`, `distill` or an earlier `report`
    has finished is not made again.
    """
    given = folders_of(teacher)
    checked = load_run_recipe(recipe, set_, given, out, track)
    folder = run_folder(recipe, out, checked)
    from fewstep.core.device import choose_device
    from fewstep.recipes.study import run_study
    from fewstep.train import is_main

    report = run_study(checked, folder, choose_device(device), say, teachers=given)
    if is_main():
        say(f"report: {report}")


command = report_command
