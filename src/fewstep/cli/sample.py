"""`fewstep sample`: images from a model folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from fewstep.cli.classes import class_ids
from fewstep.cli.options import (
    Device,
    OutSheet,
    Overwrite,
    Scale,
    Seed,
    Steps,
    W,
    say,
)
from fewstep.cli.out import check_out, is_folder
from fewstep.cli.pictures import BATCH, Opened, Sheet, counted, draw, open_model, settings_of

if TYPE_CHECKING:
    from fewstep.core.cond import Cond

__all__ = ["class_ids", "command", "sample_command"]


def sample_command(
    model: Annotated[Path, typer.Argument(help="Folder of a model.")],
    cond: Annotated[
        str | None,
        typer.Option(
            help="Classes to draw: cat,dog or 0,5-9, or any for no particular class; by default "
            "each class once."
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Prompt, for text-to-image models. May be given several times."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file with one prompt per line, in place of --prompt.")
    ] = None,
    w: W = 1.0,
    steps: Steps = None,
    sampler: Annotated[
        str | None,
        typer.Option(help="deterministic, stochastic or heun; the student's own by default."),
    ] = None,
    seed: Seed = 0,
    count: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Images per class or prompt.")
    ] = 1,
    out: OutSheet = Path("sample.png"),
    columns: Annotated[
        int, typer.Option(min=1, max=1000, help="Images per row of the sheet.")
    ] = 10,
    scale: Scale = None,
    overwrite: Overwrite = False,
    device: Device = None,
) -> None:
    """Draw images of classes or prompts.

    Writes a PNG sheet that carries its settings, or a folder of images.
    """
    check_out(out, overwrite)
    texts = _texts(prompt, prompts)
    import torch

    from fewstep.core.cond import take
    from fewstep.core.sample import sample

    opened = open_model(model, device)
    wanted = _wanted(opened, cond, texts)
    total = count * len(wanted.names)
    sheet = Sheet.planned(out, opened.image_shape, total, scale=scale, columns=columns)
    index = torch.arange(len(wanted.names)).repeat(count)
    x = sample(
        opened.model,
        take(wanted.cond, index),
        w=w,
        steps=steps,
        seed=seed,
        sampler=sampler,
        batch_size=BATCH,
    )
    images = opened.images(x)
    settings = settings_of("sample", [opened], w=w, steps=steps or opened.card.steps, seed=seed)
    drawn = []
    if is_folder(out):
        names = [wanted.names[k] for k in index.tolist()]
        drawn = [
            draw(_slug(name), image, settings | {wanted.key: name, "image": k})
            for k, (name, image) in enumerate(zip(names, images, strict=True))
        ]
    written = sheet.save([images], drawn, settings | {wanted.key: wanted.names})
    say(f"{counted(total)}: {written}")


class _Wanted(NamedTuple):
    """A condition per kind of image, their names, and whether these are classes or prompts."""

    cond: Cond
    names: list[str]
    key: str


def _wanted(opened: Opened, cond: str | None, texts: list[str]) -> _Wanted:
    import torch

    from fewstep.folders import encode_prompts

    card = opened.card
    if opened.takes_text != bool(texts) or (opened.takes_text and cond is not None):
        raise opened.wrong_kind("--cond")
    if opened.takes_text:
        return _Wanted(encode_prompts(opened.folder, texts, device=opened.device), texts, "prompt")
    ids = list(range(card.num_classes)) if cond is None else opened.classes.ids(cond, "--cond")
    return _Wanted(torch.tensor(ids), [str(k) for k in ids], "cond")


def _texts(prompt: list[str] | None, prompts: Path | None) -> list[str]:
    if prompts is None:
        return list(prompt or ())
    from fewstep.data import read_prompts

    return [*(prompt or ()), *read_prompts(prompts)]


def _slug(name: str) -> str:
    return re.sub(r"[\W_]+", "-", name.lower()).strip("-")[:60]


command = sample_command
