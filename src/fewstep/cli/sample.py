"""`fewstep sample`: images from a model folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from fewstep.cli.options import Device, GuidanceScale, class_ids, refuse_guidance_scale, say
from fewstep.errors import DataError, RangeError

if TYPE_CHECKING:
    from fewstep.cli.pictures import Opened
    from fewstep.core.cond import Cond


def sample_command(
    model: Annotated[Path, typer.Argument(help="Folder of a model.")],
    cond: Annotated[
        str | None, typer.Option(help="Classes: 0,1,5-9 or cat,dog; by default one of each.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What to draw, for text-to-image models; may be given several times."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="File of prompts, one a line, in place of --prompt.")
    ] = None,
    w: Annotated[float, typer.Option(help="Guidance weight; 0 is none.")] = 1.0,
    steps: Annotated[
        int | None, typer.Option(help="Steps; by default what the model was made for.")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="deterministic, stochastic or heun.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="Images of each class or prompt.")] = 1,
    out: Annotated[Path, typer.Option(help="PNG sheet, or a folder.")] = Path("sample.png"),
    columns: Annotated[int, typer.Option(min=1, help="Images in a row of the sheet.")] = 10,
    scale: Annotated[int, typer.Option(min=1, help="Pixels a pixel.")] = 8,
    device: Device = None,
    guidance_scale: GuidanceScale = None,
) -> None:
    """Draw images of classes or prompts: a PNG sheet that carries its settings, or a folder."""
    refuse_guidance_scale(guidance_scale)
    import torch

    from fewstep.cli.pictures import BATCH, check_out, open_model, save_each, settings_of
    from fewstep.core.cond import take
    from fewstep.core.sample import sample
    from fewstep.recipes.sheet import contact_sheet, save_sheet

    check_out(out)
    opened = open_model(model, device)
    wanted = _wanted(opened, cond, _texts(prompt, prompts))
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
    told = settings | {wanted.key: wanted.names}
    sheet = contact_sheet(images, min(columns, len(images)), scale)
    if out.suffix:
        save_sheet(sheet, out, told)
    else:
        names = [wanted.names[k] for k in index.tolist()]
        own = [{wanted.key: name, "image": k} for k, name in enumerate(names)]
        save_each(out, list(zip(map(_slug, names), images, own, strict=True)), settings)
        save_sheet(sheet, out / "sheet.png", told)
    say(f"{len(images)} images: {out}")


class _Wanted(NamedTuple):
    """A condition of each kind of image, what they are called, and what such names are."""

    cond: Cond
    names: list[str]
    key: str


def _wanted(opened: Opened, cond: str | None, texts: list[str]) -> _Wanted:
    import torch

    from fewstep.models import encode_prompts

    card = opened.card
    if not opened.takes_text and not texts:
        ids = list(range(card.num_classes)) if cond is None else class_ids(cond, card.class_names)
        return _Wanted(torch.tensor(ids), [str(k) for k in ids], "cond")
    if opened.takes_text and texts and cond is None:
        return _Wanted(encode_prompts(opened.folder, texts, device=opened.device), texts, "prompt")
    what = "prompts: give --prompt, or --prompts" if opened.takes_text else "classes: give --cond"
    raise RangeError(f"{card.name} draws by {what}, and nothing else.")


def _texts(prompt: list[str] | None, prompts: Path | None) -> list[str]:
    texts = list(prompt or ())
    if prompts is None:
        return texts
    if not prompts.is_file():
        raise DataError(
            f"--prompts {prompts}: there is no such file. Give one with a prompt a line."
        )
    lines = [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines()]
    texts += [line for line in lines if line]
    if not texts:
        raise DataError(f"--prompts {prompts} is empty. Give a file with a prompt a line.")
    return texts


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60]


command = sample_command
