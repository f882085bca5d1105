"""`fewstep report`: a whole recipe, from images to its page."""

from __future__ import annotations

from pathlib import Path

from fewstep.cli.options import Device, Out, RecipeName, Set, Teachers, load_run_recipe, say


def report_command(
    recipe: RecipeName,
    out: Out = None,
    teacher: Teachers = None,
    set_: Set = None,
    device: Device = None,
) -> None:
    """Train, distil and measure what is not done yet; write tables, plots and report.html.

    The same command goes on where it, `train` or `distill` stopped.
    """
    checked = load_run_recipe(recipe, set_)
    from fewstep.recipes.study import run_study

    where = out or Path("runs") / checked.name
    report = run_study(checked, where, device, say, teachers=teacher or ())
    say(f"report: {report}")


command = report_command
