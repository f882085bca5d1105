"""What an export format is, and the options that formats take."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.models.families.stable_diffusion import STABLE_DIFFUSION
from fewstep.models.families.stable_diffusion_xl import STABLE_DIFFUSION_XL
from fewstep.models.model import Model

# Families whose files other programs read.
SHARED = (STABLE_DIFFUSION.name, STABLE_DIFFUSION_XL.name)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may choose of an export; None where nothing was given.

    Attributes:
        w: the guidance weight to fix.
        base: folder or hub id of the teacher, over which the student becomes a LoRA.
        rank: of that LoRA.
        style: of its keys, "diffusers" or "kohya".
    """

    w: float | None = None
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


def metadata(title: str, steps: int | None, facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a safetensors file, under the names that other programs show.

    steps: that the student was made for; None for any number. facts: kept as JSON.
    """
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.usage_hint": f"{steps or 'any number of'} DDIM steps, trailing, CFG 1",
        "fewstep": json.dumps(facts),
    }
