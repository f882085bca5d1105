"""fewstep: guided diffusion models distilled to a few steps, with a live guidance knob.

Public names are resolved when first used, so that `import fewstep` and the command line's
`--help` do not wait for torch and diffusers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fewstep.core.denoiser import Denoiser, Guided, Traits
    from fewstep.core.sample import sample
    from fewstep.distill.halve import Halve
    from fewstep.distill.match import Match
    from fewstep.distill.plan import Plan, Stage, chain, direct
    from fewstep.distill.pretrain import Pretrain
    from fewstep.edit import decode, encode, img2img, inpaint, interpolate, transfer
    from fewstep.errors import FewstepError
    from fewstep.models import Model, load, save_model
    from fewstep.models.pipeline import ClassConditionalPipeline
    from fewstep.train import TrainConfig

_HOMES = {
    "ClassConditionalPipeline": "fewstep.models.pipeline",
    "Denoiser": "fewstep.core.denoiser",
    "FewstepError": "fewstep.errors",
    "Guided": "fewstep.core.denoiser",
    "Halve": "fewstep.distill.halve",
    "Match": "fewstep.distill.match",
    "Model": "fewstep.models",
    "Plan": "fewstep.distill.plan",
    "Pretrain": "fewstep.distill.pretrain",
    "Stage": "fewstep.distill.plan",
    "TrainConfig": "fewstep.train",
    "Traits": "fewstep.core.denoiser",
    "chain": "fewstep.distill.plan",
    "decode": "fewstep.edit",
    "direct": "fewstep.distill.plan",
    "encode": "fewstep.edit",
    "img2img": "fewstep.edit",
    "inpaint": "fewstep.edit",
    "interpolate": "fewstep.edit",
    "load": "fewstep.models",
    "sample": "fewstep.core.sample",
    "save_model": "fewstep.models",
    "transfer": "fewstep.edit",
}

__all__ = [
    "ClassConditionalPipeline",
    "Denoiser",
    "FewstepError",
    "Guided",
    "Halve",
    "Match",
    "Model",
    "Plan",
    "Pretrain",
    "Stage",
    "TrainConfig",
    "Traits",
    "__version__",
    "chain",
    "decode",
    "direct",
    "encode",
    "img2img",
    "inpaint",
    "interpolate",
    "load",
    "sample",
    "save_model",
    "transfer",
]


def __getattr__(name: str) -> Any:
    """Import the public name from the module where it lives."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "testing":
        return importlib.import_module("fewstep.testing")
    raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
