"""`fewstep evaluate`: figures of model folders, as a database, tables, plots and sheets."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli.options import (
    LARGEST_SEED,
    Device,
    For,
    Results,
    WList,
    numbers,
    say,
    whole,
)
from fewstep.cli.out import check_results
from fewstep.errors import FolderError, RangeError, did_you_mean

if TYPE_CHECKING:
    from fewstep.data import DataConfig
    from fewstep.models import Card

WRITTEN = ("evaluation.json", "table.md", "table.csv", "plots", "sheets")
MAX_STEPS = 100_000
REFERENCE_STEPS = 256
MAX_SAMPLES = 10_000_000
FID_FILE = "fid.json"


def evaluate_command(
    models: Annotated[list[Path], typer.Argument(help="Folders of models.")],
    reference: Annotated[
        str | None,
        typer.Option(
            help="Images to compare with: a folder, a parquet file or digits. By default the "
            "training images, where the models name them."
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Feature extractor: a folder of a transformers vision model, or the weights file "
            "of the published Inception."
        ),
    ] = None,
    w: WList = "0,1,2,4",
    steps: Annotated[
        str | None,
        typer.Option(
            help="Sampling steps, e.g. 1,2,4, for models that accept any number. Students are "
            "measured with the numbers that they were made for."
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="Samplers, e.g. deterministic,heun,dpm-solver++,unipc, for models that accept any."
        ),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(help="Folder of the many-step teacher for rms_to_teacher and fd_to_teacher."),
    ] = None,
    reference_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_STEPS,
            help="Sampling steps of that teacher.",
            show_default=str(REFERENCE_STEPS),
        ),
    ] = None,
    no_fd_to_teacher: Annotated[
        bool,
        typer.Option(
            "--no-fd-to-teacher",
            help="Leave out fd_to_teacher, for which that teacher draws its samples again, with "
            "another seed.",
        ),
    ] = False,
    fid: Annotated[
        Path | None,
        typer.Option(
            help="Weights file of the published Inception: measure FID by the published protocol, "
            "and write fid.json with it. In place of --features."
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=MAX_SAMPLES,
            help="Images per cell of the table.",
            show_default="2000; 50000 with --fid",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=-LARGEST_SEED, max=LARGEST_SEED, help="Seed of the noise, the same in every cell."
        ),
    ] = 0,
    out: Results = Path("evaluation"),
    device: Device = None,
    _for: For = None,
) -> None:
    """Measure models: distances, scores and speed.

    What is kept in --out is not measured again.
    """
    ws = list(dict.fromkeys(numbers(w, "--w")))
    counts = None if steps is None else list(dict.fromkeys(whole(steps, "--steps")))
    samplers = None if sampler is None else _samplers(sampler)
    if fid is not None and features is not None:
        raise RangeError("--fid and --features both give a feature extractor. Use one of them.")
    if fid is not None and not fid.is_file():
        raise FolderError(
            f"--fid must be a file of the published Inception, and {fid} is no file. Download it, "
            "or use --features with other features."
        )
    from fewstep.folders import card_in
    from fewstep.lock import writer_of
    from fewstep.measure.evaluate import Evaluation, quiet
    from fewstep.measure.fid import SAMPLES, write_fid
    from fewstep.measure.room import check_samples
    from fewstep.recipes.check import check_evaluation
    from fewstep.recipes.compare import Comparison, compare, write_comparison
    from fewstep.train import is_main, main_first, processes

    count = samples or (2000 if fid is None else SAMPLES)
    place = str(processes(device).device)
    tell = say if is_main() else quiet
    check_results(out, WRITTEN if fid is None else (*WRITTEN, FID_FILE))
    comparison = Comparison(
        tuple(dict.fromkeys(models)),
        tuple(ws),
        None if counts is None else tuple(counts),
        None if samplers is None else tuple(samplers),
        teacher,
        REFERENCE_STEPS if reference_steps is None else reference_steps,
        reference_given=reference_steps is not None,
        fd_to_teacher=not no_fd_to_teacher,
    )
    columns = comparison.columns(tell)
    cards = [card_in(folder) for folder in comparison.models]
    with main_first():  # which decodes the images
        data = training_data(cards, reference, comparison.models[0], tell)
    evaluation = Evaluation(
        *(data, out, count, seed, min(500, count), fid or features, place, tell),
        every=fid is not None,
    )
    shape = evaluation.dataset.shape
    check_samples(count, shape, "--samples", out, evaluation.batch_size)
    check_evaluation(evaluation, "--features" if fid is None else "--fid")
    comparison.check_images(evaluation.dataset, data)
    with writer_of(out) if is_main() else nullcontext():
        compared = compare(evaluation, comparison, columns)
        if not is_main():
            return
        table, path = write_comparison(evaluation, compared)
        if fid is not None:
            tell(f"FID and its protocol: {write_fid(evaluation, compared.cells, FID_FILE)}")
    typer.echo(table)
    say(f"rows: {path}; table.md, table.csv, plots and sheets beside it")


def _samplers(text: str) -> list[str]:
    from fewstep.core.samplers import SAMPLERS
    from fewstep.measure.solvers import SOLVERS

    known = [*(name for name, s in SAMPLERS.items() if not s.encodes), *SOLVERS]
    found = [part.strip() for part in text.split(",")]
    for name in found:
        if name not in known:
            raise RangeError(
                f"--sampler must be samplers with commas between them, got {name!r}. Use "
                f"{', '.join(known)}.{did_you_mean(name, known)}"
            )
    return list(dict.fromkeys(found))


def training_data(
    cards: list[Card], reference: str | None, folder: Path, tell: Callable[[str], None] = say
) -> DataConfig:
    """Return the images of the models' training, from where they are now.

    folder: of the model of the first card. Images that are not those of the training are named.
    tell: called with a line of text.
    """
    from fewstep.data import DATASETS, DataConfig, open_dataset

    names = {str(c.training["data"]) for c in cards if c.training.get("data") is not None}
    if reference is None and len(names) != 1:
        made = f"and they name {', '.join(sorted(names))}" if names else "and they name none"
        raise FolderError(
            f"the models must name the same training images, {made}. Use --reference with the "
            "images to compare with."
        )
    card, name = cards[0], reference or names.pop()
    if name in DATASETS:
        config = DataConfig(name=name)
    elif reference is None:
        raise FolderError(
            f"the models were trained on images called {name!r}, and their place is not known. Use "
            f"--reference path/to/{name}."
        )
    else:
        config = _with_shape(card, folder, name)
    train = open_dataset(config, "train")
    tell(train.summary)
    if train.shape != _shape(folder, card):
        raise FolderError(
            f"{Path(name).name} must have images of the shape of those of {card.name}, "
            f"{_shape(folder, card)}, got {train.shape}. Use --reference with other images."
        )
    trained = card.training.get("data_sha256")
    sizes = "buckets" in card.training  # the same images then have another hash
    if trained is not None and not sizes and train.content_hash() != str(trained):
        tell(f"{Path(name).name}: other images than those that {card.name} was trained on")
    return config


def _shape(folder: Path, card: Card) -> tuple[int, ...]:
    from fewstep.files.hub import local
    from fewstep.folders import image_shape

    return image_shape(local(folder), card)


def _with_shape(card: Card, folder: Path, name: str) -> DataConfig:
    from fewstep.data.config import check_data

    shape = _shape(folder, card)
    kept = card.training.get("images")
    settings: dict[str, object] = {"size": shape[-1], "channels": shape[0]}
    if isinstance(kept, dict):
        settings = dict(kept)
    if not card.num_classes:
        settings["cond"] = "prompt"
    return check_data({**settings, "name": name})


command = evaluate_command
