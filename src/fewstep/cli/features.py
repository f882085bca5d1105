"""`fewstep features train`: a classifier of one's own images, as the metrics' feature extractor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.help import Command
from fewstep.cli.options import Device, say

app = typer.Typer(
    help="Feature extractors of the metrics.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def features() -> None:
    """Feature extractors of the metrics."""


@app.command("train", cls=Command)
def train_command(
    data: Annotated[str, typer.Argument(help="A data set, or the path of your images.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    name: Annotated[
        str, typer.Option(help="Metrics are called fd_<name>; by default the folder's.")
    ] = "",
    size: Annotated[
        int | None, typer.Option(min=1, max=16_384, help="Height and width in pixels.")
    ] = None,
    channels: Annotated[int, typer.Option(min=1, max=3, help="3 for RGB, 1 for grey.")] = 3,
    held_out: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share held out to measure the accuracy on.")
    ] = 0.05,
    label: Annotated[
        str | None, typer.Option(help="Column of the classes, where it has another name.")
    ] = None,
    background: Annotated[
        str, typer.Option(help="Colour that transparent images are composed on.")
    ] = "white",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out images that cannot be used.")
    ] = False,
    flip: Annotated[bool, typer.Option(help="Mirror images are of the same class.")] = True,
    epochs: Annotated[int, typer.Option(min=1, max=10_000, help="Epochs of training.")] = 8,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Seed of weights, order and shifts.")
    ] = 0,
    device: Device = None,
) -> None:
    """Train a classifier on images as a feature extractor.

    Prints its accuracy on held-out images and writes it to a folder.

    The folder is a model of the transformers library. `fewstep evaluate --features` takes it, and
    any other vision model of that library.
    """
    from fewstep.core.device import choose_device
    from fewstep.data import check_data, open_dataset
    from fewstep.errors import DataError
    from fewstep.metrics import train_features

    if channels not in (1, 3):
        raise DataError(f"--channels must be 3 (RGB) or 1 (grey), got {channels}.")
    place = choose_device(device)
    settings = {"size": size, "channels": channels, "held_out": held_out, "skip_bad": skip_bad}
    config = check_data({**settings, "name": data, "label": label, "background": background})
    train = open_dataset(config, "train")
    say(train.summary)
    found = train_features(
        out,
        train,
        open_dataset(config, "held-out"),
        name=name or out.name.lower(),
        epochs=epochs,
        flip=flip,
        seed=seed,
        device=place,
    )
    typer.echo(f"{found.name}: accuracy {found.held_out_accuracy:.4f} on the held-out images")
    say(f"features: {out}")
