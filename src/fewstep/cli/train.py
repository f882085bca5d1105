"""`fewstep train`: the guided teacher."""

from __future__ import annotations

from pathlib import Path

from fewstep.cli.options import Device, Out, RecipeName, Set, load_run_recipe, say


def train_command(
    recipe: RecipeName, out: Out = None, set_: Set = None, device: Device = None
) -> None:
    """Train the recipe's guided teacher. The same command goes on where it stopped."""
    checked = load_run_recipe(recipe, set_)
    from fewstep.recipes.run import Run

    run = Run(checked, out or Path("runs") / checked.name, device, say)
    run.prepare()
    run.train_teacher()
    say(f"teacher: {run.folder('teacher')}")


command = train_command
