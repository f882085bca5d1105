"""What families of class-conditional networks have in common: conditions are (B,) class ids."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.errors import RangeError, ShapeError
from fewstep.models.card import Card


def class_ids(cond: Cond) -> Tensor:
    """Return the class ids. Raises ShapeError for a condition of another kind."""
    if not isinstance(cond, Tensor):
        raise ShapeError("this model's condition is a (B,) tensor of class ids, not a dict.")
    return cond


def check_classes(network: Any, card: Card, cond: Cond) -> None:
    """Raise ShapeError or RangeError unless the condition is class ids that the model draws."""
    if not isinstance(cond, Tensor) or cond.ndim != 1 or cond.is_floating_point():
        raise ShapeError("this model's condition is a (B,) integer tensor of class ids.")
    last = max(card.num_classes - 1, card.null_class)
    if not bool(((cond >= 0) & (cond <= last)).all()):
        worst = int(cond.max()) if int(cond.max()) > last else int(cond.min())
        raise RangeError(
            f"class {worst}; this model draws the classes 0 to {card.num_classes - 1} "
            f"({card.null_class} for any). Choose one of them."
        )
