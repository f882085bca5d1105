"""`fewstep pack`: a run in a few small files, to continue it on another machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.options import say


def pack_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[
        Path, typer.Option(help="New folder for the files, or one that `fewstep pack` wrote.")
    ],
    optimizer: Annotated[
        bool | None,
        typer.Option(
            "--optimizer/--no-optimizer",
            help="Include the optimiser's state, which is needed to continue to the same bits; by "
            "default if it fits.",
        ),
    ] = None,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Round weights to bfloat16: half the size.")
    ] = False,
    file_size: Annotated[
        float, typer.Option(metavar="MIB", help="The most of each file, in MiB.")
    ] = 15.0,
    files: Annotated[int, typer.Option(help="The most files, with the manifest.")] = 7,
) -> None:
    """Pack a run into a few files, to continue elsewhere.

    They hold its recipe, models and checkpoints; a manifest has their hashes.
    """
    from fewstep.recipes.pack import MIB, pack_run

    manifest = pack_run(run, out, optimizer=optimizer, bf16=bf16, file_size=file_size, files=files)
    size = sum(part["size"] for part in manifest["parts"]) / MIB
    say(f"packed: {out}, {len(manifest['parts']) + 1} files, {size:.1f} MiB; {contents(manifest)}")


def contents(manifest: dict[str, object]) -> str:
    """Return in words what a packed run holds."""
    models = manifest["models"]
    assert isinstance(models, dict)
    parts = [f"{name} ({m['state']}, {m['updates']} updates)" for name, m in models.items()]
    parts.append(f"{'with' if manifest['optimizer'] else 'without'} the optimiser's state")
    return ", ".join([*parts, *["rounded to bf16"] * bool(manifest["bf16"])])


command = pack_command
