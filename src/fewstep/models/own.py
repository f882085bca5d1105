"""Modules of the user's own as models: wrapped as they are, with a card of what they say."""

from __future__ import annotations

from typing import Any

from torch import nn

from fewstep.core.denoiser import inside, traits_of
from fewstep.core.samplers import SAMPLERS
from fewstep.distill.plan import TEACHER, Stage
from fewstep.errors import RangeError, ShapeError
from fewstep.models.card import OWN, TAUGHT, Card
from fewstep.models.clocks.own import OWN_CLOCK
from fewstep.models.model import Model
from fewstep.version import __version__


def as_model(denoiser: Any, name: str = "model") -> Model:
    """Return the model of a denoiser, or of the one inside a guided pair.

    A plain module of the user's is wrapped with a card made of its traits. name: for that card.
    Raises ShapeError where it is no module.
    """
    model = inside(denoiser)
    if isinstance(model, Model):
        return model
    if not isinstance(model, nn.Module):
        raise ShapeError(
            f"a model must be a torch.nn.Module to be trained or saved, got a "
            f"{type(model).__name__}, which has no network. Make it a module with "
            "forward(z, phi, cond, w)."
        )
    return Model(model, _card(model, name), OWN_CLOCK)


def _card(module: nn.Module, name: str) -> Card:
    traits = traits_of(module)  # type: ignore[arg-type]
    steps = traits.steps or ()
    if len(steps) > 1:
        raise RangeError(
            f"traits.steps must name one number of steps to be saved, got {steps}. Save a model "
            "for each."
        )
    # How a student was made is not known, but what it was made for is.
    made_for = SAMPLERS.get(traits.sampler or "deterministic") or SAMPLERS["deterministic"]
    stage = TAUGHT
    if steps:
        direction = "encode" if made_for.encodes else "decode"
        stage = Stage(None, TEACHER, steps=steps[0], stride=made_for.stride, direction=direction)
    elif traits.w_range is not None:
        stage = Stage(None, TEACHER)
    return Card.model_validate(
        {
            "fewstep": __version__,
            "family": OWN,
            "name": name,
            "stage": stage,
            "clock": OWN_CLOCK.name,
            "shape": traits.shape or (),
            "w_range": traits.w_range,
        }
    )
