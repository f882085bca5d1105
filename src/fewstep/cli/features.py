"""`fewstep features train`: a classifier on one's own images, for the metrics to look through."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.options import Device, say

app = typer.Typer(
    help="Feature modules, which the metrics look through.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def features() -> None:
    """Feature modules, which the metrics look through."""


@app.command("train")
def train_command(
    data: Annotated[str, typer.Argument(help="A data set, or the path of your images.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    name: Annotated[
        str, typer.Option(help="Metrics are called fd_<name>; by default the folder's.")
    ] = "",
    size: Annotated[int | None, typer.Option(min=1, help="Height and width in pixels.")] = None,
    channels: Annotated[int, typer.Option(min=1, max=3, help="3 for RGB, 1 for grey.")] = 3,
    held_out: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share kept to measure the accuracy on.")
    ] = 0.05,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out bad images.")] = False,
    flip: Annotated[bool, typer.Option(help="Mirror images are of the same class.")] = True,
    epochs: Annotated[int, typer.Option(min=1, help="Passes through the images.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and shifts.")] = 0,
    device: Device = None,
) -> None:
    """Train a classifier, say its accuracy on the held-out images, and keep it as a folder.

    The folder is one of the transformers library; `fewstep evaluate --features` takes it, and
    any other vision model of that library.
    """
    from fewstep.data import open_dataset
    from fewstep.data.config import DataConfig
    from fewstep.errors import DataError
    from fewstep.metrics import train_features
    from fewstep.recipes.run import default_device

    if channels not in (1, 3):
        raise DataError(f"--channels {channels}; images have 3 (RGB) or 1 (grey).")
    config = DataConfig(
        name=data,
        size=size,
        channels=1 if channels == 1 else 3,
        held_out=held_out,
        skip_bad=skip_bad,
    )
    train = open_dataset(config, "train")
    if train.skipped:
        say(f"{data}: left out {train.skipped} images that cannot be used")
    found = train_features(
        out,
        train,
        open_dataset(config, "held-out"),
        name=name or out.name.lower(),
        epochs=epochs,
        flip=flip,
        seed=seed,
        device=device or default_device(),
    )
    typer.echo(f"{found.name}: accuracy {found.held_out_accuracy:.4f} on the held-out images")
    say(f"features: {out}")
