"""`fewstep show`: what a model folder is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fewstep.models import Card

KIND = {
    "teacher": "guided teacher (two passes a step)",
    "match": "stage one (one pass a step, any number of steps)",
    "halve": "few-step student (one pass a step)",
}
ENCODER = "few-step encoder (one pass a step, from images to noise)"
PAIR = "few-step student without stage one (two passes a step)"


def show_command(
    model: Annotated[Path, typer.Argument(help="Folder of a model.")],
    json: Annotated[bool, typer.Option("--json", help="The card as JSON.")] = False,
) -> None:
    """Say what a model folder is: stage, steps, range of w, parents, figures."""
    from fewstep.models import card_in

    card = card_in(model)
    typer.echo(card.model_dump_json(indent=2) if json else describe(card))


def _kind(card: Card) -> str:
    if card.pair:
        return PAIR
    return ENCODER if card.direction == "encode" else KIND[card.stage]


def _lora(card: Card) -> str:
    if card.lora is None:
        return ""
    where = "merged" if card.lora.merged else f"apart, over {card.lora.base}"
    return (
        f"rank {card.lora.rank}, alpha {card.lora.alpha:g}, {', '.join(card.lora.targets)}; {where}"
    )


def _targets(card: Card) -> str:
    """Say what one step of a student stands for."""
    if card.substeps is None:
        return ""
    of = "second order" if card.order == 2 else "DDIM"
    return f"{card.substeps} sub-steps of its parent a step, by {of}"


def describe(card: Card) -> str:
    """Return the card in lines for a person."""
    w = "any" if card.w_range is None else f"{card.w_range[0]:g} to {card.w_range[1]:g}"
    by = f"{card.num_classes} classes" if card.num_classes else "by prompts"
    shape = "x".join(map(str, card.shape))
    told = [(k, v) for k, v in card.training.items() if k != "images"]
    made = ", ".join(f"{k} {v}" for k, v in told if "sha" not in k)
    rows = {
        "name": card.name,
        "stage": _kind(card),
        "steps": "any" if card.steps is None else str(card.steps),
        "targets": _targets(card),
        "sampler": card.sampler or "any",
        "w": w,
        "images" if card.family == "unet-class" else "latents": f"{shape}, {by}",
        "clock": f"{card.clock}, predicts {card.prediction or 'v_prediction'}",
        "weights": card.weights_sha256[:16],
        "LoRA": _lora(card),
        "parents": " <- ".join(f"{p.name} ({p.sha256[:8]})" for p in card.parents) or "none",
        "made by": made.replace(", fingerprint", "\n             fingerprint"),
    }
    lines = [f"{key:<12} {value}" for key, value in rows.items() if value]
    lines += [
        f"{'figures' if i == 0 else '':<12} {k} {v:.4g}"
        for i, (k, v) in enumerate(card.figures.items())
    ]
    return "\n".join(lines)


command = show_command
