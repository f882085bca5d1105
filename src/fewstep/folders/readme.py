"""The model card: `README.md` of a saved pipeline folder, for people who have diffusers only.

The edge where diffusers' `guidance_scale` is spelt out: 1 + w.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import yaml

from fewstep.models.card import Card
from fewstep.models.clocks.clock import Clock

README = "README.md"
_FENCE = "---"
_MARKUP = re.compile(r"[\\`*\[\]|#]")
_STOCK_NULL = 1000  # written into DiTPipeline
_LICENCE = ("license", "license_name", "license_link")


def licence_of(folder: Path) -> dict[str, str]:
    """Return what the front matter of a folder's README.md says of its licence; {} for nothing."""
    path = folder / README
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != _FENCE or _FENCE not in lines[1:]:
        return {}
    try:
        told = yaml.safe_load("\n".join(lines[1 : lines.index(_FENCE, 1)]))
    except yaml.YAMLError:
        return {}
    if not isinstance(told, dict):
        return {}
    return {key: str(told[key]) for key in _LICENCE if told.get(key)}


def model_card(card: Card, clock: Clock, pipeline: str, source: Path) -> str:
    """Return the text of README.md.

    pipeline: the stock class that opens the folder. source: the parent's folder, whose licence is
    passed on.
    """
    licence = licence_of(source)
    files = sorted(p.name for p in source.glob("LICEN[SC]E*"))
    front = {**licence, "library_name": "diffusers"}
    if not card.num_classes:
        front["pipeline_tag"] = "text-to-image"
    sections = [
        f"{_FENCE}\n{yaml.safe_dump(front, sort_keys=False)}{_FENCE}",
        f"# {escaped(card.name)}",
        _about(card),
        *_stock(card, clock, pipeline),
        *_ours(card),
        *_made(card, clock),
        _figures(card),
        _licence(card, licence, files),
    ]
    return "\n\n".join(sections) + "\n"


def escaped(value: object) -> str:
    """Return a text in which nothing is markup of Markdown or HTML, on one line."""
    text = " ".join(str(value).split())
    return _MARKUP.sub(lambda found: f"\\{found[0]}", text).replace("<", "&lt;")


def _code(value: object) -> str:
    return "`" + " ".join(str(value).split()).replace("`", "'") + "`"


def _place(card: Card) -> str:
    """Return a path that ends in the model's name, as a string of Python."""
    return json.dumps(f"path/to/{card.name}".replace("`", "'"), ensure_ascii=False)


def _base(card: Card) -> str:
    return card.parents[-1].name if card.parents else card.name


def _live(card: Card) -> bool:
    return card.w_range is not None and card.w_range[0] != card.w_range[1]


def _about(card: Card) -> str:
    if card.is_teacher:
        return (
            "A teacher, kept by fewstep: its network is its parent's. A step of a "
            "guided image costs two network evaluations."
        )
    cost = "two network evaluations" if card.pair else "one network evaluation"
    steps = "any number of steps" if card.steps is None else f"exactly {card.steps} steps"
    guided = " The guidance weight is an input of the network."
    if card.pair:
        guided = ""
    elif card.num_classes and card.w_range is not None and not _live(card):
        guided = f" Guidance at w = {card.w_range[0]:g} is in its weights."
    return (
        f"{_code(_base(card))}, distilled by fewstep (Meng et al. 2023, arXiv 2210.03142) for "
        f"{steps}. A step costs {cost}.{guided}{_how_adapted(card)}"
    )


def _how_adapted(card: Card) -> str:
    if card.lora is None:
        return ""
    where = "merged into the weights here" if card.lora.merged else "kept apart"
    return f" It was trained as a LoRA of rank {card.lora.rank}, {where}."


def _stock(card: Card, clock: Clock, pipeline: str) -> list[str]:
    head = "## With diffusers"
    if card.lora is not None and not card.lora.merged:
        return [head, _stock_apart(card)]
    if card.sampler not in (None, "deterministic"):
        return [
            head,
            f"This model was made for the {card.sampler!r} sampler, whose moves no stock scheduler "
            "makes: sample it with fewstep.",
        ]
    if card.num_classes and card.w_range is not None and _live(card):
        return [
            head,
            f"This network has an input for w, from {card.w_range[0]:g} to {card.w_range[1]:g}, "
            f"that {pipeline} cannot fill: draw with fewstep. A student for one w opens there; "
            "make one with `w` of one value.",
        ]
    if card.num_classes:
        return [head, *_stock_classes(card, clock, pipeline)]
    steps = _some_steps(card)
    live = card.w_range is not None
    w = _middle(card.w_range) if card.w_range is not None else 6.5
    code = (
        "```python\n"
        f"from diffusers import {pipeline}\n\n"
        f"pipe = {pipeline}.from_pretrained({_place(card)})\n"
        f'image = pipe("a photograph of a cat", num_inference_steps={steps}, '
        f"guidance_scale={1 + w:g}).images[0]\n"
        "```"
    )
    notes = [_steps_note(card, clock), "Keep the scheduler of this folder: it makes those steps."]
    if live and card.w_range is not None:
        low, high = (1 + x for x in card.w_range)
        notes.append(
            f"`guidance_scale` is 1 + w. This network was trained for w from {low - 1:g} to "
            f"{high - 1:g}: give a `guidance_scale` from {low:g} to {high:g}. It costs nothing: "
            "there is no second pass."
        )
        notes.append(
            "Negative prompts are ignored by stock pipelines, without a word. This model was "
            f"guided away from {_null(card)}, and that is in its weights."
        )
    alpha = math.cos(clock.phis[-1])
    ends = alpha < 1e-6
    kept = "nothing is left of the image" if ends else f"{alpha:.3f} of the image is still there"
    notes.append(
        "The image-to-image and inpainting pipelines open this folder as well. With N steps and a "
        f"`strength` s, image-to-image makes N s of them, rounded down; at strength 1 {kept}"
        + (": it is text-to-image." if ends else ", so it is not quite text-to-image.")
    )
    return [head, code, "\n".join(f"- {note}" for note in notes)]


def _stock_apart(card: Card) -> str:
    assert card.lora is not None
    return (
        "This folder holds an adapter (in the format of peft) and a w input, and no network: stock "
        "pipelines do not open it. Its base is to be found at "
        f"{_code(card.lora.base)}, seen from this folder; the sha256 of its weights is "
        f"{card.lora.base_sha256}. A folder that stock pipelines open is made by merging:\n\n"
        "```python\n"
        "import fewstep\nfrom fewstep.models import merge_adapter, save_model\n\n"
        f'save_model(merge_adapter(fewstep.load({_place(card)})), "merged")\n'
        "```"
    )


def _some_steps(card: Card) -> int:
    return card.steps or (50 if card.is_teacher else 8)


def _stock_classes(card: Card, clock: Clock, pipeline: str) -> list[str]:
    fixed = card.w_range is not None
    scale = 1 if fixed else 4
    notes = [_steps_note(card, clock), "Keep the scheduler of this folder: it makes those steps."]
    if fixed:
        notes.append(
            "`guidance_scale` must be 1: guidance is in the weights, and any other value would "
            "guide a second time, at twice the cost."
        )
    elif card.num_classes != _STOCK_NULL:
        notes.append(
            f"Stock pipelines take class {_STOCK_NULL} for none, and this model has "
            f"{card.num_classes} classes: draw guided images with fewstep."
        )
    code = (
        "```python\n"
        f"from diffusers import {pipeline}\n\n"
        f"pipe = {pipeline}.from_pretrained({_place(card)})\n"
        f"image = pipe(class_labels=[0], num_inference_steps={_some_steps(card)}, "
        f"guidance_scale={scale}).images[0]\n"
        "```"
    )
    return [code, "\n".join(f"- {note}" for note in notes)]


def _steps_note(card: Card, clock: Clock) -> str:
    if card.steps is not None:
        return f"`num_inference_steps` must be {card.steps}: it was trained for no other number."
    return (
        f"`num_inference_steps` may be any number that divides {len(clock)}; with others the "
        "stock scheduler steps off its own grid."
    )


def _middle(w: tuple[float, float]) -> float:
    middle = (w[0] + w[1]) / 2
    return round(middle, 1) if w[0] <= round(middle, 1) <= w[1] else middle


def _null(card: Card) -> str:
    if card.num_classes:
        return f"class {card.null_class}"
    if card.null_prompt is None:
        return "zeros in place of a prompt"
    return f"the prompt {json.dumps(card.null_prompt)}" if card.null_prompt else "the empty prompt"


def _ours(card: Card) -> list[str]:
    w = _middle(card.w_range) if card.w_range is not None else 6.5
    steps = "" if card.steps is not None else ", steps=8"
    needed = "import torch\n\nimport fewstep\nfrom fewstep.models import decode_latents, load_vae\n"
    cond = "torch.tensor([0])"
    if not card.num_classes:
        needed = (
            "import fewstep\nfrom fewstep.models import decode_latents, encode_prompts, load_vae\n"
        )
        cond = 'encode_prompts(folder, ["a photograph of a cat"])'
    return [
        "## With fewstep",
        "```python\n"
        f"{needed}\n"
        f"folder = {_place(card)}\n"
        f"cond = {cond}\n"
        f"z = fewstep.sample(fewstep.load(folder), cond, w={w:g}{steps}, seed=0)\n"
        "images = decode_latents(load_vae(folder), z)  # (B, 3, H, W) in [-1, 1]\n"
        "```",
    ]


def _made(card: Card, clock: Clock) -> list[str]:
    rows: dict[str, Any] = {
        "stage": card.stage.kind,
        "latents": "x".join(map(str, card.shape)),
        "clock": f"{len(clock)} timesteps, angles {clock.phis[0]:.4f} to {clock.phis[-1]:.4f}",
        "the network predicts": clock.prediction,
        "unconditional pass": _null(card),
        "weights (sha256)": card.weights_sha256,
    }
    if card.lora is not None:
        rows["LoRA"] = (
            f"rank {card.lora.rank}, alpha {card.lora.alpha:g}, on {', '.join(card.lora.targets)}, "
            f"{'merged' if card.lora.merged else 'kept apart'}"
        )
    rows.update({f"parent: {p.name} (sha256)": p.sha256 for p in card.parents})
    rows.update({k: v for k, v in card.training.items() if not isinstance(v, dict)})
    table_rows = [f"| {escaped(key)} | {escaped(value)} |" for key, value in rows.items()]
    return ["## How it was made", "\n".join(["| | |", "| --- | --- |", *table_rows])]


def _figures(card: Card) -> str:
    if not card.figures:
        return "## Figures\n\nNone were measured."
    rows = [f"| {escaped(name)} | {value:.4g} |" for name, value in card.figures.items()]
    return "\n".join(["## Figures", "", "| figure | value |", "| --- | --- |", *rows])


def _licence(card: Card, licence: dict[str, str], files: list[str]) -> str:
    base = _base(card)
    if not licence and not files:
        return (
            f"## Licence\n\nThe folder of {_code(base)} names no licence. This model is made from "
            "its weights: find out what they may be used for before you share it."
        )
    named = licence.get("license_name") or licence.get("license")
    told = f": {named}" if named else ""
    link = f" ({licence['license_link']})" if "license_link" in licence else ""
    also = f" Its text is in {', '.join(files)}." if files else ""
    return f"## Licence\n\nThat of {_code(base)}, from whose weights it is made{told}{link}.{also}"
