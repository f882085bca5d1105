"""A student before its first update: its parent's network told w, and a card of its own."""

from __future__ import annotations

import copy

from fewstep.core.denoiser import Guided
from fewstep.distill.plan import Stage
from fewstep.errors import RangeError, ShapeError
from fewstep.models.folder import lineage, weights_sha256
from fewstep.models.pipeline_model import PipelineModel
from fewstep.models.unet_class import UNetModel
from fewstep.models.w_input import BAND

W_DIM = 256  # features of w: as many as published consistency models have


def student_of(
    parent: UNetModel | Guided,
    stage: Stage,
    w: tuple[float, float],
    *,
    w_dim: int = W_DIM,
    w_band: float | None = BAND,
) -> UNetModel:
    """Return the student that a stage trains; it equals its parent bit for bit.

    It is told w by a new input of the network, unless it is a pair, or its family has none.

    Args:
        parent: what `load` gave: a teacher (its conditional pass is what the student equals), the
            model of stage one, or a student.
        stage: what it is to become; also its name.
        w: range of the guidance weight.
        w_dim: features of w, where the parent has no w input.
        w_band: features faster than so many radians a unit of w stay zero (decision 0003).

    Raises:
        ShapeError: the parent does not come from a model folder.
        RangeError: w is no range, or wider than the parent's, or the family needs one fixed w.
    """
    inner = parent.denoiser if isinstance(parent, Guided) else parent
    if not isinstance(inner, UNetModel):
        raise ShapeError("this denoiser does not come from a model folder; it has no network.")
    known = inner.card.w_range
    if not w[0] <= w[1] or (known and not known[0] <= w[0] <= w[1] <= known[1]):
        raise RangeError(
            f"w = {w}; it must be (low, high)"
            + (f" within the parent's range {known}." if known else ", low <= high.")
        )
    card = inner.card
    if not card.weights_sha256 and isinstance(inner, PipelineModel):
        card = card.model_copy(update={"weights_sha256": weights_sha256(inner.source, inner.part)})
    told = card.model_copy(
        update={
            "name": stage.name,
            "stage": "match" if stage.steps is None else "halve",
            "w_range": None if stage.pair else w,
            "w_band": w_band if inner.w_dim is None else card.w_band,
            "pair": stage.pair,
            "steps": stage.steps,
            "substeps": None if stage.steps is None else stage.substeps,
            "stride": stage.stride,
            "direction": stage.direction,
            "sampler": stage.sampler,
            "parents": lineage(card),
            "weights_sha256": "",
            "training": {},
            "figures": {},
        }
    )
    # A pair is guided by two passes, which stock pipelines make where there is no w input.
    unet = copy.deepcopy(inner.unet) if stage.pair else inner.with_w(w, w_dim)
    return inner.like(unet, told)
