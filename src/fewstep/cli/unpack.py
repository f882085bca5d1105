"""`fewstep unpack`: restore a run that `fewstep pack` packed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.options import say
from fewstep.cli.pack import contents


def unpack_command(
    folder: Annotated[Path, typer.Argument(help="Folder that `fewstep pack` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the run, which must not exist yet.")],
) -> None:
    """Restore a packed run after checking its hashes."""
    from fewstep.recipes.unpack import unpack_run

    manifest = unpack_run(folder, out)
    say(f"run: {out}; {contents(manifest)}")
    if manifest["bf16"] or not manifest["optimizer"]:
        say("Begun stages continue from their weights, and end with others than without packing.")


command = unpack_command
