"""Modules of the user's own as models: wrapped as they are, with a card of what they say."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from torch import nn

from fewstep.core.denoiser import inside, traits_of
from fewstep.errors import RangeError, ShapeError
from fewstep.models.card import OWN, STRIDES, Card
from fewstep.models.clocks.own import OWN_CLOCK
from fewstep.models.model import Model


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
    stage = "halve" if steps else "teacher" if traits.w_range is None else "match"
    known = {name: stride for stride, name in STRIDES.items()}
    return Card.model_validate(
        {
            "fewstep": version("fewstep"),
            "family": OWN,
            "name": name,
            "stage": stage,
            "clock": OWN_CLOCK.name,
            "shape": traits.shape or (),
            "w_range": traits.w_range,
            "steps": steps[0] if steps else None,
            "sampler": traits.sampler if steps else None,
            "stride": known.get(traits.sampler or "", 1) if steps else 1,
            "direction": "encode" if steps and traits.sampler == "encode" else "decode",
        }
    )
