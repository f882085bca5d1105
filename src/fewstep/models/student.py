"""A student before its first update: its parent's network told w, and a card of its own."""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import nn

from fewstep.core.denoiser import Guided
from fewstep.core.seed import derive
from fewstep.distill.plan import Stage
from fewstep.errors import RangeError
from fewstep.models.card import Adapter, Card
from fewstep.models.folder import lineage
from fewstep.models.lora import Lora, adapted, has_adapter, merged
from fewstep.models.own import own_or_known
from fewstep.models.pipeline_folder import weights_sha256
from fewstep.models.pipeline_model import PipelineModel
from fewstep.models.unet_class import MOST, UNetModel, network_of
from fewstep.models.w_input import BAND

W_DIM = 256  # features of w: as many as published consistency models have


def student_of(
    parent: UNetModel | Guided | nn.Module,
    stage: Stage,
    w: tuple[float, float],
    *,
    w_dim: int = W_DIM,
    w_band: float | None = BAND,
    lora: Lora | None = None,
    seed: int = 0,
) -> UNetModel:
    """Return the student that a stage trains; it equals its parent bit for bit.

    w becomes a new input of the network, unless it is a pair, or its family has none. A module of
    your own is copied as it is, and takes w as an argument of its `forward`.

    With `lora`, adapter and w input are all that is trained. The other weights are the parent's own
    memory, frozen in both: keep the parent as the teacher, and it goes on answering as it did. A
    parent whose adapter is kept apart gives its student a copy of it to go on with.

    Args:
        parent: what `load` gave: a teacher (its conditional pass is what the student equals), the
            model of stage one, or a student.
        stage: what it is to become; also its name.
        w: range of the guidance weight.
        w_dim: features of w, where the parent has no w input.
        w_band: features faster than so many radians a unit of w stay zero (decision 0003).
        lora: train an adapter of this kind; None trains every weight. (Then a parent with an
            adapter apart has it merged first, and is equalled but for rounding.)
        seed: of the adapter's random half.

    Raises:
        ShapeError: the parent is no module.
        RangeError: w is no finite range, or wider than the parent's, or the family needs one fixed
            w; an adapter that does not fit the network, or cannot be kept apart.
        MissingError: LoRA without peft.
    """
    inner = own_or_known(parent.denoiser if isinstance(parent, Guided) else parent)
    known = inner.card.w_range
    if w_dim % 2 or not 4 <= w_dim <= MOST:
        raise RangeError(
            f"w_dim must be an even number from 4 to {MOST}, got {str(w_dim)[:40]}. Use {W_DIM}."
        )
    if not _is_range(w) or (known and not known[0] <= w[0] <= w[1] <= known[1]):
        raise RangeError(
            f"w = {w}; it must be (low, high)"
            + (f" within the parent's range {known}." if known else ", low <= high, both finite.")
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
            "order": None if stage.steps is None else stage.order,
            "stride": stage.stride,
            "direction": stage.direction,
            "sampler": stage.sampler,
            "lora": None if lora is None else _adapter(inner, lora),
            "parents": lineage(card),
            "weights_sha256": "",
            "training": {},
            "figures": {},
        }
    )
    if lora is not None:
        # A pair is guided by two passes, which stock pipelines make where there is no w input.
        dim = None if stage.pair or not inner.takes_w(w) else w_dim
        return inner.like(adapted(inner.unet, lora, w_dim=dim, seed=derive(seed, stage.name)), told)
    plain = inner.like(merged(inner.unet), inner.card) if has_adapter(inner.unet) else inner
    unet = copy.deepcopy(plain.unet) if stage.pair else plain.with_w(w, w_dim)
    # The parent's are frozen where an adapter was trained over them.
    return inner.like(unet.requires_grad_(True), told)


def merge_adapter(model: UNetModel | Guided) -> UNetModel:
    """Return the student with its adapter in its weights; `save_model` makes a stock folder of it.

    What `load` gave is left alone. The answers are the same but for rounding.
    Raises ShapeError where it does not come from a model folder.
    """
    inner = network_of(model)
    lora = inner.card.lora and inner.card.lora.model_copy(
        update={"merged": True, "base": None, "base_sha256": ""}
    )
    return inner.like(merged(inner.unet), inner.card.model_copy(update={"lora": lora}))


def _adapter(parent: UNetModel, lora: Lora) -> Adapter:
    told = lora.model_dump(exclude={"keep_apart"})
    if not lora.keep_apart:
        return Adapter(**told)
    if not isinstance(parent, PipelineModel):
        raise RangeError(
            f"lora.keep_apart: models of the family {parent.card.family!r} are small and stand "
            "alone; only adapters of pipeline folders are kept apart. Leave it out."
        )
    return Adapter(**told, merged=False, base_sha256=_base_sha256(parent, parent.card))


def _base_sha256(parent: PipelineModel, card: Card) -> str:
    """Return the hash of the weights under the adapter, once it is sure where they are."""
    found = weights_sha256(parent.source, parent.part)
    expected = card.weights_sha256 or (found if card.stage == "teacher" else "")
    if has_adapter(parent.unet) and card.lora is not None:
        expected = card.lora.base_sha256
    if found != expected:
        raise RangeError(
            f"lora.keep_apart: the weights of {card.name} are not those in {parent.source}, and an "
            "adapter kept apart needs a folder that has them. Save the parent, and load it again."
        )
    return found


def _is_range(w: Any) -> bool:
    """Return whether w is two finite numbers, the first not above the second."""
    try:
        low, high = map(float, w)
    except (TypeError, ValueError, OverflowError):
        return False
    return math.isfinite(low) and math.isfinite(high) and low <= high
