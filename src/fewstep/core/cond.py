"""Conditions: what to draw, as a batch that the core carries without looking inside.

A condition batch is a tensor, or a dict of tensors, whose first dimension is the batch. A
null condition ("draw anything") is a condition batch of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from fewstep.errors import ShapeError

Cond: TypeAlias = "Tensor | dict[str, Tensor]"
Copies: TypeAlias = "dict[torch.device, Cond]"


def _map(function: Callable[[Tensor], Tensor], cond: Cond) -> Cond:
    if isinstance(cond, dict):
        return {key: function(value) for key, value in cond.items()}
    return function(cond)


def _zip(function: Callable[[Tensor, Tensor], Tensor], a: Cond, b: Cond) -> Cond:
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            raise ShapeError(
                f"two conditions have the keys {sorted(a)} and {sorted(b)}; "
                "they must be the same. Give both every key."
            )
        return {key: function(a[key], b[key]) for key in a}
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return function(a, b)
    raise ShapeError(
        f"one condition is a {type(a).__name__}, the other a {type(b).__name__}; "
        "both must be tensors or both dicts of tensors."
    )


def batch_size(cond: Cond) -> int:
    """Return B. Raises ShapeError where the tensors of a dict disagree or there is none."""
    tensors = list(cond.values()) if isinstance(cond, dict) else [cond]
    sizes = {t.shape[0] if t.ndim else 0 for t in tensors}
    if len(sizes) != 1 or 0 in sizes:
        raise ShapeError(
            f"the condition's tensors have the first dimensions {sorted(sizes)}; "
            "there must be one batch size, at least 1."
        )
    return sizes.pop()


def take(cond: Cond, index: Tensor | slice) -> Cond:
    """Return the examples `index` of a condition batch."""
    return _map(lambda t: t[index], cond)


def concat(a: Cond, b: Cond) -> Cond:
    """Return the batch of a's examples, then b's."""
    return _zip(lambda s, t: torch.cat([s, t.to(s.dtype)]), a, b)


def repeat_null(null_cond: Cond, n: int) -> Cond:
    """Return the null condition n times, as a view. Raises ShapeError unless its batch is 1."""
    if batch_size(null_cond) != 1:
        raise ShapeError(
            f"the null condition is a batch of {batch_size(null_cond)}; it must be a batch of 1. "
            "Keep its first dimension: torch.tensor([10]), not torch.tensor(10)."
        )
    return _map(lambda t: t.expand(n, *t.shape[1:]), null_cond)


def replace(cond: Cond, mask: Tensor, null_cond: Cond) -> Cond:
    """Return cond with the null condition where mask (B,) is True (label dropout)."""

    def where(c: Tensor, n: Tensor) -> Tensor:
        return torch.where(mask.reshape(-1, *[1] * (c.ndim - 1)), n.to(c.dtype), c)

    return _zip(where, cond, repeat_null(null_cond, batch_size(cond)))


def to(cond: Cond, device: torch.device | str) -> Cond:
    """Return the condition on `device`."""
    return _map(lambda t: t.to(device), cond)


def once(cond: Cond, device: torch.device, copies: Copies) -> Cond:
    """Return the condition on `device`, copied at the first call and kept in `copies`.

    For what is the same in every update: a copy from the host would wait for the device each time.
    """
    if device not in copies:
        copies[device] = to(cond, device)
    return copies[device]


def send(cond: Cond, device: torch.device) -> Cond:
    """Return the condition on `device`; to a GPU by pinned memory, so that the host need not wait.

    What was sent must not be written to until the device has come to it.
    """
    if device.type != "cuda":
        return to(cond, device)
    return _map(lambda t: t if t.is_cuda else t.pin_memory().to(device, non_blocking=True), cond)
