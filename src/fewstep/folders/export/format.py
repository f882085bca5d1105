"""What an export format is, and the options that formats take."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.models.card import Card, is_folded
from fewstep.models.clocks.flow import FlowClock
from fewstep.models.model import Model
from fewstep.models.scheduler import is_lcm

# Family -> what other programs call the architecture, where a family has one alone.
ARCHITECTURES = {
    "stable-diffusion-xl": "stable-diffusion-xl-v1-base",
    "stable-diffusion-3": "stable-diffusion-3",
    "flux": "flux-1-schnell",
    "flux-guided": "flux-1-dev",
    "chroma": "chroma",
    "sana": "sana",
    "qwen-image": "qwen-image",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may choose of an export; None where nothing was given.

    Attributes:
        w: the guidance weight to fix.
        steps: the number of steps of an any-step student to fix; `export` does it for every format.
        base: folder or hub id of the teacher, over which the student becomes a LoRA.
        rank: of that LoRA.
        style: of its keys, "diffusers" or "kohya".
    """

    w: float | None = None
    steps: int | None = None
    base: Path | str | None = None
    rank: int | None = None
    style: str | None = None


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format that models are exported to.

    Attributes:
        name: as in `--to`.
        about: what it is for, in one line.
        takes: names of the `Options` that it uses; any other is refused.
        write: (model, path, options) -> lines on what was written. The path appears whole or not
            at all. Raises RangeError for a model or options that the format is not for.
    """

    name: str
    about: str
    takes: frozenset[str]
    write: Callable[[Model, Path, Options], tuple[str, ...]]


def sha256_of(card: Card) -> str:
    """Return the hash of a student's weights before folding; "" where it was never saved."""
    return card.parents[0].sha256 if is_folded(card) else card.weights_sha256


def metadata(
    title: str, model: Model, facts: Mapping[str, Any], architecture: str
) -> dict[str, str]:
    """Return the metadata of a safetensors file, under the names that other programs show.

    model: whose steps and guidance are written. facts: kept as JSON. architecture: name of the
    original model's; "" where it is not known.
    """
    about = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.usage_hint": f"{model.card.steps or 'any number of'} {_steps(model)}",
        "fewstep": json.dumps(facts),
    }
    return {**about, "modelspec.architecture": architecture} if architecture else about


def _steps(model: Model) -> str:
    """Return which steps a model makes, and with which guidance."""
    steps = "DDIM steps, trailing"
    if is_lcm(model.clock, model.card.sampler):
        steps = "LCM steps"
    elif isinstance(model.clock, FlowClock):
        steps = f"Euler steps of rectified flow, shift {model.clock.shift:.4g}"
    guidance = ", guidance 1 + w" if model.family.slot == "value" else ""
    return f"{steps}, CFG 1{guidance}"
