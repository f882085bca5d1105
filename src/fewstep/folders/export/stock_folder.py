"""`diffusers`: a folder of the teacher's own class, with one w fixed in its weights."""

from __future__ import annotations

from pathlib import Path

from fewstep.errors import RangeError
from fewstep.folders.export.format import Format, Options
from fewstep.folders.write import save_model
from fewstep.models.card import OWN
from fewstep.models.model import Model
from fewstep.models.student import fold_w


def check_w_input(model: Model) -> None:
    """Raise RangeError unless the network has an input for w."""
    card = model.card
    if model.can_fold:
        return
    if card.family == OWN:
        found = "a module of your own. Save it with fewstep.save_model"
    elif card.is_teacher:
        found = "a teacher, which stock pipelines guide by two passes. Distil it first"
    elif card.w_range is None:
        found = "a student of two passes, which stock pipelines guide. Use its folder as it is"
    else:
        found = f"a student for w = {card.w_range[0]:g} alone. Use its folder as it is"
    raise RangeError(
        f"{card.name} must be a student with an input for w to be exported, got {found}."
    )


def is_for_one_w(model: Model) -> bool:
    """Whether a student was made for one w, and has no input for it."""
    low, high = model.card.w_range or (0.0, 1.0)
    return low == high and not model.can_fold


def folded(model: Model, options: Options) -> Model:
    """Return the model with w folded into its weights. Raises RangeError without a w in range."""
    check_w_input(model)
    low, high = model.card.w_range or (0.0, 0.0)
    if options.w is None:
        middle = (low + high) / 2
        raise RangeError(
            f"w is required, the guidance weight to fix in the weights: {model.card.name} was "
            f"trained for w from {low:g} to {high:g}. Use --w {middle:g}, for example."
        )
    return fold_w(model, options.w)


def write(model: Model, out: Path, options: Options) -> tuple[str, ...]:
    """Write the folder of the model with w folded into its weights.

    Of an any-step student at one number of steps, w may stay an input.
    """
    if options.w is None and options.steps is not None:
        save_model(model, out)
        return (f"{options.steps} steps are fixed in the weights; w is still an input",)
    made = folded(model, options)
    save_model(made, out)
    return (fixed_line(made, "the weights"),)


def fixed_line(model: Model, where: str) -> str:
    """Return the line on a model that was made for one w: where it is, and how it is used."""
    assert model.card.w_range is not None
    w = model.card.w_range[0]
    scale = f"guidance scale {1 + w if model.family.native else 1:g}"
    if model.family.true_cfg:
        scale = "true_cfg_scale 1, its default"
    return f"w = {w:g} is fixed in {where}; use {scale}"


STOCK_FOLDER = Format(
    name="diffusers",
    about="a folder that stock diffusers pipelines open, with one w fixed in its weights",
    takes=frozenset({"w"}),
    write=write,
)
