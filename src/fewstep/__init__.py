"""fewstep: guided diffusion models distilled to a few steps, with a live guidance knob.

Public names are resolved when first used, so that `import fewstep` and the command line's
`--help` do not wait for torch and diffusers.
"""

from __future__ import annotations

import importlib
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

from fewstep.version import __version__

if TYPE_CHECKING:
    from fewstep.core.denoiser import Denoiser, Guided, Traits
    from fewstep.core.sample import sample
    from fewstep.distill.any_steps import AnyStepDistillation
    from fewstep.distill.chains import chain, direct
    from fewstep.distill.guidance import GuidanceDistillation
    from fewstep.distill.plan import Plan, Stage
    from fewstep.distill.pretrain import Pretrain
    from fewstep.distill.steps import StepDistillation
    from fewstep.edit import decode, encode, img2img, inpaint, interpolate, transfer
    from fewstep.errors import FewstepError
    from fewstep.folders import load, save_model
    from fewstep.folders.export import export
    from fewstep.limit import time_limit
    from fewstep.models import Model
    from fewstep.models.pipeline import ClassConditionalPipeline
    from fewstep.train import TrainConfig

_HOMES = {
    "AnyStepDistillation": "fewstep.distill.any_steps",
    "ClassConditionalPipeline": "fewstep.models.pipeline",
    "Denoiser": "fewstep.core.denoiser",
    "FewstepError": "fewstep.errors",
    "GuidanceDistillation": "fewstep.distill.guidance",
    "Guided": "fewstep.core.denoiser",
    "Model": "fewstep.models",
    "Plan": "fewstep.distill.plan",
    "Pretrain": "fewstep.distill.pretrain",
    "Stage": "fewstep.distill.plan",
    "StepDistillation": "fewstep.distill.steps",
    "TrainConfig": "fewstep.train",
    "Traits": "fewstep.core.denoiser",
    "chain": "fewstep.distill.chains",
    "decode": "fewstep.edit",
    "direct": "fewstep.distill.chains",
    "encode": "fewstep.edit",
    "export": "fewstep.folders.export",
    "img2img": "fewstep.edit",
    "inpaint": "fewstep.edit",
    "interpolate": "fewstep.edit",
    "load": "fewstep.folders",
    "sample": "fewstep.core.sample",
    "save_model": "fewstep.folders",
    "time_limit": "fewstep.limit",
    "transfer": "fewstep.edit",
}

# Earlier names, which are not those of the literature.
_RENAMED = {"Halve": "StepDistillation", "Match": "GuidanceDistillation"}

__all__ = [
    "AnyStepDistillation",
    "ClassConditionalPipeline",
    "Denoiser",
    "FewstepError",
    "GuidanceDistillation",
    "Guided",
    "Model",
    "Plan",
    "Pretrain",
    "Stage",
    "StepDistillation",
    "TrainConfig",
    "Traits",
    "__version__",
    "chain",
    "decode",
    "direct",
    "encode",
    "export",
    "img2img",
    "inpaint",
    "interpolate",
    "load",
    "sample",
    "save_model",
    "time_limit",
    "transfer",
]


def _renamed(name: str, *args: Any, **settings: Any) -> Any:
    """Return what an old name made; its `w` is `w_range` now."""
    new = _RENAMED[name]
    text = f"fewstep.{name} is now fewstep.{new}, and its w is w_range"
    warnings.warn(text, DeprecationWarning, stacklevel=2)
    if "w" in settings:
        settings["w_range"] = settings.pop("w")
    return __getattr__(new)(*args, **settings)


def __getattr__(name: str) -> Any:
    """Import the public name from the module where it lives."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "testing":
        return importlib.import_module("fewstep.testing")
    if name in _RENAMED:
        return partial(_renamed, name)
    raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
