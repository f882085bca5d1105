"""The model card: `README.md` of a saved pipeline folder, for people who have diffusers only.

The text is in `readme.jinja`. It is the edge where diffusers' `guidance_scale` is spelt out: 1 + w.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import yaml

from fewstep.files.copies import licence_files
from fewstep.files.parts import vae_factor
from fewstep.models.card import Card
from fewstep.models.model import Model
from fewstep.models.scheduler import is_lcm

README = "README.md"
TEMPLATE = Path(__file__).with_name("readme.jinja")
STOCK_NULL = 1000  # the class of the unconditional pass, written into DiTPipeline
GUIDANCE = 6.5  # w in the example of a guided pair of prompts; 3 of classes
_FENCE = "---"
_MARKUP = re.compile(r"[\\`*\[\]|#]")
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
        front = yaml.safe_load("\n".join(lines[1 : lines.index(_FENCE, 1)]))
    except yaml.YAMLError:
        return {}
    if not isinstance(front, dict):
        return {}
    return {key: str(front[key]) for key in _LICENCE if front.get(key)}


def model_card(model: Model, card: Card, source: Path) -> str:
    """Return the text of README.md.

    card: that will be saved. source: the parent's folder, whose licence is passed on.
    """
    from huggingface_hub import ModelCard, ModelCardData

    licence = licence_of(source)
    pipeline_tag = None if card.num_classes else "text-to-image"
    data = ModelCardData(
        **licence,  # type: ignore[arg-type]
        library_name="diffusers",
        pipeline_tag=pipeline_tag,
        ignore_metadata_errors=True,
    )
    text = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        card=card,
        licence=licence,
        licence_files=[file.name for file in licence_files(source)],
        plain=escaped,
        code=_code,
        number=lambda number: f"{number:g}",
        **_facts(model, card, source),
    )
    return str(text)


def _facts(model: Model, card: Card, source: Path) -> dict[str, Any]:
    """Return what the template says of the model, by its names there."""
    knob, low_high = _knob(model, card), card.w_range or (0.0, 0.0)
    guided = GUIDANCE if not card.num_classes else 3.0
    w = guided if card.w_range is None else _middle(card.w_range)
    there = model.family.parts_in(source)
    return {
        # A stock pipeline opens a folder without an optional part only where that is given as None.
        "absent": [part for part in model.family.parts if part not in there],
        "apart": card.lora is not None and not card.lora.merged,
        "base": card.parents[-1].name if card.parents else card.name,
        "image_to_image": len(model.family.pipelines) > 1,
        "knob": knob,
        "low": low_high[0],
        "high": low_high[1],
        "guidance": "true_cfg_scale" if model.family.true_cfg else "guidance_scale",
        "made": _made(model, card),
        "made_for": _made_for(card),
        "null": _null(card),
        "pipeline": model.family.pipelines[0],
        "place": json.dumps(f"path/to/{card.name}".replace("`", "'"), ensure_ascii=False),
        "size": size_in_call(model, source),
        "scale": 1 if knob == "fixed" else 1 + w,
        "signal": math.cos(float(model.clock.phis[-1])),
        "some_steps": card.steps or (50 if card.w_range is None else 8),
        "steps": (card.stage.counts or (8,))[0],
        "stock_null": STOCK_NULL,
        "stock_steps": card.sampler in (None, "deterministic") or is_lcm(model.clock, card.sampler),
        "timesteps": len(model.clock),
        "w": w,
    }


def size_in_call(model: Model, source: Path) -> str:
    """Return arguments of the stock pipeline for sizes of the model that it does not know.

    These are the length of prompts, and where no setting says it the size of the images.
    """
    length = model.card.max_sequence_length
    text = "" if length is None else f", max_sequence_length={length}"
    if model.family.flow != "spaced":
        return text
    height, width = (vae_factor(source) * n for n in model.card.shape[1:])
    return f"{text}, height={height}, width={width}"


def _knob(model: Model, card: Card) -> str:
    """Return where guidance is.

    "pair": two passes, mixed by the pipeline; "slot": an input that stock pipelines fill; "ours":
    an input that they cannot fill; "fixed": the weights.
    """
    if card.w_range is None:
        return "pair"
    if model.family.slot == "value":
        return "slot"
    if model.w_dim is None:
        return "fixed"
    return "slot" if model.family.slot == "features" else "ours"


def _made(model: Model, card: Card) -> dict[str, Any]:
    first, last = float(model.clock.phis[0]), float(model.clock.phis[-1])
    rows: dict[str, Any] = {
        "stage": "teacher" if card.is_teacher else card.stage.kind,
        "latents": "x".join(map(str, card.shape)),
        "clock": f"{len(model.clock)} timesteps, angles {first:.4f} to {last:.4f}",
        "the network predicts": model.clock.prediction,
        "unconditional pass": _null(card),
        "weights (sha256)": card.weights_sha256,
    }
    if card.lora is not None:
        rows["LoRA"] = (
            f"rank {card.lora.rank}, alpha {card.lora.alpha:g}, on {', '.join(card.lora.targets)}, "
            f"{'merged' if card.lora.merged else 'kept apart'}"
        )
    rows.update({f"parent: {p.name} (sha256)": p.sha256 for p in card.parents})
    if card.teacher is not None:
        rows[f"teacher: {card.teacher.name} (sha256)"] = card.teacher.sha256
    rows.update({k: v for k, v in card.training.items() if not isinstance(v, dict)})
    return rows


def _made_for(card: Card) -> str:
    if card.steps is not None:
        return f"exactly {card.steps} steps"
    shown = ", ".join(map(str, card.stage.any_steps))
    return f"{shown} steps, as it is asked" if shown else "any number of steps"


def _middle(w_range: tuple[float, float]) -> float:
    low, high = w_range
    middle = (low + high) / 2
    return round(middle, 1) if low <= round(middle, 1) <= high else middle


def _null(card: Card) -> str:
    if card.num_classes:
        return f"class {card.null_class}"
    if card.null_prompt is None:
        return "zeros in place of a prompt"
    return f"the prompt {json.dumps(card.null_prompt)}" if card.null_prompt else "the empty prompt"


def escaped(value: object) -> str:
    """Return a text in which nothing is markup of Markdown or HTML, on one line."""
    text = " ".join(str(value).split())
    return _MARKUP.sub(lambda found: f"\\{found[0]}", text).replace("<", "&lt;")


def _code(value: object) -> str:
    return "`" + " ".join(str(value).split()).replace("`", "'") + "`"
