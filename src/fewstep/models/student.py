"""A student before its first update: its parent's network with an input for w, and a card."""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.seed import derive
from fewstep.distill.plan import Stage
from fewstep.distill.pretrain import pretraining
from fewstep.errors import RangeError
from fewstep.files.weights import part_sha256
from fewstep.models.card import OWN, Adapter, Card, Parent, is_folded, lineage
from fewstep.models.lora import Lora, adapted, has_adapter, merged
from fewstep.models.model import Model, model_of
from fewstep.models.own import as_model
from fewstep.models.steps_input import add_steps_input
from fewstep.models.steps_input import fold as fold_in_steps
from fewstep.models.unet import MOST
from fewstep.models.w_input import (
    ADDED_AFTER,
    BAND,
    Band,
    add_w_input,
    added_name,
    features_of,
    fold,
    with_slot,
)

W_DIM = 256  # features of w: as many as published consistency models have


def student_of(
    parent: Denoiser | nn.Module,
    stage: Stage,
    w_range: tuple[float, float],
    *,
    w_dim: int = W_DIM,
    w_band: Band = BAND,
    lora: Lora | None = None,
    seed: int = 0,
) -> Model:
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
        w_range: range of the guidance weight.
        w_dim: features of w, where the parent has no w input.
        w_band: features faster than so many radians a unit of w stay zero (decision 0003); "one":
            all but sin(0.1 w) do.
        lora: train an adapter of this kind; None trains every weight. (Then a parent with an
            adapter apart has it merged first, and is equalled but for rounding.)
        seed: of the adapter's random half.

    Raises:
        ShapeError: the parent is no module.
        RangeError: w is no finite range, or wider than the parent's, or the family needs one fixed
            w; an adapter that does not fit the network, or cannot be kept apart.
        MissingError: LoRA without peft.
    """
    inner = as_model(parent)
    if stage.kind == pretraining.name:
        raise RangeError("a student is distilled, and pretraining is a teacher's. Change its kind.")
    _check_steps(inner, stage)
    known = inner.card.w_range
    if w_dim % 2 or not 4 <= w_dim <= MOST:
        raise RangeError(
            f"w_dim must be an even number from 4 to {MOST}, got {str(w_dim)[:40]}. Use {W_DIM}."
        )
    if not _is_range(w_range) or (known and not known[0] <= w_range[0] <= w_range[1] <= known[1]):
        raise RangeError(
            f"w = {w_range}; it must be (low, high)"
            + (f" within the parent's range {known}." if known else ", low <= high, both finite.")
        )
    card = inner.card
    stock = card.is_teacher and inner.source is not None and not inner.family.native
    if not card.weights_sha256 and stock:
        assert inner.source is not None
        found = part_sha256(inner.source / inner.family.part)
        card = card.model_copy(update={"weights_sha256": found})
    changed = card.model_copy(
        update={
            "name": stage.name,
            "stage": stage,
            "w_range": None if stage.pair else w_range,
            "w_band": w_band if inner.w_dim is None else card.w_band,
            "lora": None if lora is None else _adapter(inner, lora),
            "parents": lineage(card),
            "teacher": None,
            "weights_sha256": "",
            "training": {},
            "figures": {},
        }
    )
    # A pair is guided by two passes, which stock pipelines make where there is no w input.
    dim = w_dim if not stage.pair and _needs_input(inner, w_range) else None
    counts = len(stage.any_steps)
    if lora is not None:
        seed = derive(seed, stage.name)
        given: Any = {"w_dim": dim, "seed": seed, "counts": counts}
        return inner.like(adapted(inner.network, inner.family, lora, **given), changed)
    plain = inner.like(merged(inner.network), inner.card)
    network = copy.deepcopy(plain.network) if dim is None else with_w_input(plain, dim)
    if counts:
        add_steps_input(network, inner.family, counts)
    # The parent's are frozen where an adapter was trained over them.
    return inner.like(network.requires_grad_(True), changed)


def _check_steps(parent: Model, stage: Stage) -> None:
    """Raise RangeError for an any-step parent, or an any-step student that cannot be."""
    if parent.takes_steps:
        raise RangeError(
            f"a student of {parent.card.name} needs one number of steps of it. Fix it first: "
            "fewstep.models.fold_steps(model, steps)."
        )
    if not stage.any_steps:
        return
    if parent.family.name == OWN:
        raise RangeError(
            "any_steps must be left out for a module of your own, which has no input for the "
            "number of steps. Use steps."
        )
    if added_name(parent.network) == ADDED_AFTER:
        raise RangeError(
            f"an any-step student cannot start from {parent.card.name}, whose input for w is of an "
            "older format. Start from its teacher."
        )


def _needs_input(parent: Model, w_range: tuple[float, float]) -> bool:
    """Whether a student of one pass has an input for w.

    Without a slot for it, a student for one w has no input: stock pipelines draw with it as it is.
    """
    slot = parent.family.slot
    return slot == "features" or (slot is None and w_range[0] != w_range[1])


def with_w_input(model: Model, w_dim: int) -> Any:
    """Return a copy of a model's network with an input for w that at first changes nothing.

    Its one new weight is zero, so the copy equals the network bit for bit at every w, and the
    weight still gets a gradient at once (math.md 4). A network that has the input is just copied.
    """
    if features_of(model.network) is not None:
        return copy.deepcopy(model.network)
    if model.family.slot == "features":
        return with_slot(model.network, w_dim)
    network = copy.deepcopy(model.network)
    add_w_input(network, model.family, w_dim)
    return network


def fold_w(model: Denoiser, w: float) -> Model:
    """Return the student for one w: without the input for it, and of the teacher's own class.

    Guidance at w is then in its weights, and stock pipelines draw with it without guidance of their
    own. The answers are those of the student at w but for rounding. An adapter is merged.

    Raises RangeError: the network has no input for w, or w is outside the range of the student;
    ShapeError where it does not come from a model folder.
    """
    inner = model_of(model)
    low, high = inner.card.w_range or (-math.inf, math.inf)
    if not low <= w <= high:
        raise RangeError(f"w must lie in [{low:g}, {high:g}], the range of the student, got {w:g}.")
    if inner.takes_steps:
        raise RangeError(
            f"the number of steps of {inner.card.name} must be fixed before w. Call "
            "fewstep.models.fold_steps(model, steps) first."
        )
    if not inner.can_fold:
        raise RangeError("only a network with an input for w can be folded, and this has none.")
    parents, inner = _parents(inner.card), merge_adapter(inner)
    network = fold(inner.network, inner.family, w, inner.card.w_band)
    facts = {"family": inner.family.fixed or inner.card.family, "w_range": (w, w)}
    return inner.like(network, _changed(inner.card, **facts, parents=parents))


def fold_steps(model: Denoiser, steps: int) -> Model:
    """Return the student for one of the numbers of steps of an any-step student.

    It has no input for the number of steps, and keeps its input for w. The answers are those of the
    student at this number but for rounding. An adapter is merged.

    Raises RangeError: the number of steps is no input, or none of those that it was made for;
    ShapeError where it does not come from a model folder.
    """
    inner = model_of(model)
    if not inner.takes_steps:
        raise RangeError(
            f"only an any-step student is fixed at a number of steps, and {inner.card.name} is "
            "none. Leave steps out."
        )
    inner.at_steps(steps)
    parents, inner, stage = _parents(inner.card), merge_adapter(inner), inner.card.stage
    network = fold_in_steps(inner.network, inner.family, stage.counts.index(steps))
    facts = {"stage": stage.at(steps), "parents": parents}
    return inner.like(network, _changed(inner.card, **facts))


def merge_adapter(model: Denoiser) -> Model:
    """Return the student with its adapter in its weights; `save_model` makes a stock folder of it.

    What `load` gave is left alone. The answers are the same but for rounding.
    Raises ShapeError where it does not come from a model folder.
    """
    inner = model_of(model)
    if not has_adapter(inner.network):
        return inner
    lora = inner.card.lora and inner.card.lora.model_copy(
        update={"merged": True, "base": None, "base_sha256": ""}
    )
    return inner.like(merged(inner.network), _changed(inner.card, lora=lora))


def _parents(card: Card) -> tuple[Parent, ...]:
    """Return the parents of a folded student; one that was folded before has the student's own."""
    return card.parents if is_folded(card) else lineage(card)


def _changed(card: Card, **facts: Any) -> Card:
    """Return the card of weights that were changed: without a hash and without figures."""
    return card.model_copy(update={**facts, "weights_sha256": "", "figures": {}})


def _adapter(parent: Model, lora: Lora) -> Adapter:
    if not parent.family.lora:
        raise RangeError(
            "lora must be left out for a module of your own: adapters are for networks of "
            "diffusers. Train the module itself."
        )
    settings = lora.model_dump(exclude={"keep_apart"})
    if not lora.keep_apart:
        return Adapter(**settings)
    if parent.family.native:
        raise RangeError(
            f"lora.keep_apart: models of the family {parent.card.family!r} are small and stand "
            "alone; only adapters of pipeline folders are kept apart. Leave it out."
        )
    return Adapter(**settings, merged=False, base_sha256=_base_sha256(parent, parent.card))


def _base_sha256(parent: Model, card: Card) -> str:
    """Return the hash of the weights under the adapter, once it is sure where they are."""
    assert parent.source is not None
    found = part_sha256(parent.source / parent.family.part)
    expected = card.weights_sha256 or (found if card.is_teacher else "")
    if has_adapter(parent.network) and card.lora is not None:
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
