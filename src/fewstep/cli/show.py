"""`fewstep show`: what a model folder holds."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fewstep.models import Card
    from fewstep.models.card import Parent

KIND = {
    "pretraining": "guided teacher (two passes per step)",
    "guidance-distillation": "stage one (one pass per step, any number of steps)",
    "step-distillation": "few-step student (one pass per step)",
    "consistency-distillation": "consistency student (one pass per step, any number of steps)",
    "sample-distillation": "score of the teacher's samples (one pass per step, any steps)",
    "distribution-matching": "one-step student, matched (one pass per step)",
    "any-step-distillation": "any-step student (one pass per step)",
}
ENCODER = "few-step encoder (one pass per step, from images to noise)"
PAIR = "few-step student without stage one (two passes a step)"
OWN = "own"  # the family of networks that users bring
WIDTH = 100
INDENT = 13
HIDDEN = ("images", "fingerprint")  # of how a model was trained


def show_command(
    model: Annotated[Path, typer.Argument(help="Folder of a model.")],
    json: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    """Show the stage, steps, w range and figures of a model."""
    from fewstep.folders import card_in

    card = card_in(model)
    typer.echo(card.model_dump_json(indent=2) if json else describe(card))


def describe(card: Card) -> str:
    """Return the card in lines for a person."""
    rows = {
        "name": card.name,
        "stage": _kind(card),
        "steps": ", ".join(map(str, card.stage.counts)) or "any",
        "targets": _targets(card),
        "sampler": card.sampler or "any",
        "w": "any" if card.w_range is None else f"{card.w_range[0]:g} to {card.w_range[1]:g}",
        {"unet-class": "images", "own": "examples"}.get(card.family, "latents"): _examples(card),
        "clock": "its own"
        if card.family == OWN
        else f"{card.clock}, predicts {card.prediction or 'v_prediction'}",
        "weights": card.weights_sha256[:16],
        "LoRA": _lora(card),
        "parents": " <- ".join(map(_hashed, card.parents)) or "none",
        "teacher": "" if card.teacher is None else _hashed(card.teacher),
        "made by": _training(card),
    }
    lines = [_row(key, value) for key, value in rows.items() if value]
    lines += [
        _row("" if i else "figures", f"{name} {value:.4g}")
        for i, (name, value) in enumerate(card.figures.items())
    ]
    return "\n".join(lines)


def _row(key: str, value: str) -> str:
    """Return one fact, wrapped. Control characters of a card never reach the terminal."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in value)
    first = f"{key:<{INDENT}}"
    return textwrap.fill(
        shown,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * INDENT,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )


def _kind(card: Card) -> str:
    if card.pair:
        return PAIR
    return ENCODER if card.direction == "encode" else KIND.get(card.stage.kind, card.stage.kind)


def _examples(card: Card) -> str:
    shape = "x".join(map(str, card.shape))
    if card.num_classes:
        return f"{shape}, {card.num_classes} classes"
    return shape if card.family == OWN else f"{shape}, by prompts"


def _targets(card: Card) -> str:
    """Return what one step of a student replaces."""
    from fewstep.distill.plan import KINDS

    # Of a network of the user's they are not known.
    if "substeps" not in KINDS[card.stage.kind].settings or not card.parents:
        return ""
    by = "second order" if card.stage.order == 2 else "DDIM"
    if card.sampler == "consistency":
        end = "the end of" if card.stage.target == "end" else "its own jump a step further on in"
        return f"{end} trajectories of {card.stage.substeps} steps, by {by}"
    whole = f", at {card.stage.counts[0]} steps" if card.stage.any_steps else ""
    return f"{card.stage.substeps} sub-steps of its parent a step, by {by}{whole}"


def _hashed(parent: Parent) -> str:
    # A module of the user's that was never saved has no hash.
    return f"{parent.name} ({parent.sha256[:8] or 'never saved'})"


def _lora(card: Card) -> str:
    if card.lora is None:
        return ""
    where = "merged" if card.lora.merged else f"not merged, over {card.lora.base}"
    return (
        f"rank {card.lora.rank}, alpha {card.lora.alpha:g}, {', '.join(card.lora.targets)}; {where}"
    )


def _training(card: Card) -> str:
    """Return how the model was trained, without hashes and without how images were read."""
    from fewstep.errors import in_units

    shown = [
        f"{key} {value}"
        for key, value in card.training.items()
        if key not in HIDDEN and "sha" not in key and not key.endswith("_bytes")
    ]
    peak = card.training.get("memory_peak_bytes")
    if isinstance(peak, int):
        shown.append(f"memory at most {in_units(peak)}")
    return ", ".join(shown)


command = show_command
