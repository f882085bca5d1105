"""`fewstep export`: a student in the format of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.options import say
from fewstep.cli.out import check_out


def _formats(start: str) -> list[str]:
    from fewstep.folders.export import FORMATS

    return [name for name in FORMATS if name.startswith(start)]


def _styles(start: str) -> list[str]:
    return [name for name in ("diffusers", "kohya") if name.startswith(start)]


def export_command(
    model: Annotated[Path, typer.Argument(help="Folder of a student.")],
    to: Annotated[
        str,
        typer.Option(
            help="diffusers: a folder that stock diffusers pipelines open, with one w fixed in its "
            "weights; single-file: a checkpoint in the original layout, with one w fixed, whole "
            "for Stable Diffusion 1, 2 and XL, and the transformer alone for others; lora: two "
            "LoRA files for the teacher, one for its steps and one for guidance; onnx: the network "
            "for onnxruntime, with w as an input or one w fixed.",
            autocompletion=_formats,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    w: Annotated[
        float | None,
        typer.Option(
            help="Guidance weight to fix in the weights (diffusers, single-file, onnx); the single "
            "file of a Flux with guidance_embeds may be made without it, and then takes any w."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000,
            help="Number of steps to fix in the weights of an any-step student; w stays an input "
            "unless --w is given (diffusers).",
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="Folder of the teacher that the student was made from (lora)."),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=16_384,
            help="Rank of the student's LoRA, 64 by default; one that was trained as a LoRA and "
            "kept apart has its own (lora).",
        ),
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(
            help="Keys of the files: diffusers, the default, or kohya (lora).",
            autocompletion=_styles,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace what fewstep exported to --out before. Without it, --out must be empty "
            "or not exist.",
        ),
    ] = False,
) -> None:
    """Write a student in a format of other programs.

    The formats are a diffusers folder, a single file, LoRA files and ONNX.
    """
    check_out(out, overwrite, [model, *([] if base is None else [base])], ())
    from fewstep.folders.export import export

    for line in export(model, out, to=to, w=w, steps=steps, base=base, rank=rank, style=style):
        say(line)
    say(f"{to}: {out}")


command = export_command
