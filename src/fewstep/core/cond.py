"""Conditions: what to draw, as a batch that the core carries without looking inside.

A condition batch is a tensor, or a dict of tensors, whose first dimension is the batch. A
null condition ("draw anything") is a condition batch of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fewstep.errors import ShapeError

Cond: TypeAlias = "Tensor | dict[str, Tensor]"
# What `as_cond` makes a condition batch of; Any covers NumPy arrays, which are not imported.
Given: TypeAlias = "Cond | Sequence[int] | int | Any"
Copies: TypeAlias = "dict[torch.device, Cond]"


def as_cond(given: object) -> Cond:
    """Return a condition batch made of class ids, or the condition batch that is given.

    Args:
        given: one class id; a list, range or NumPy array of them; or a condition batch. Integers
            of any width become int64; a dict of tensors and floating-point tensors stay as they
            are.

    Raises:
        ShapeError: text, true/false, None, or numbers that make no tensor.
    """
    if isinstance(given, dict):
        wrong = [key for key, value in given.items() if not isinstance(value, Tensor)]
        if not given or wrong:
            raise ShapeError(
                f"a dict of conditions must hold tensors, got {'no entry' if not given else wrong}."
                " Pass what fewstep.folders.encode_prompts returns."
            )
        return given
    try:
        out = given if isinstance(given, Tensor) else torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        out = None
    if out is None or out.dtype == torch.bool:
        raise ShapeError(
            f"cond must be class ids or encoded prompts, got {_shown(given)}. Pass ids such as "
            "cond=[3, 7], or fewstep.folders.encode_prompts(folder, prompts) for a text-to-image "
            "model."
        )
    out = out.reshape(1) if out.ndim == 0 else out
    return out if out.is_floating_point() else out.long()


def _shown(given: object) -> str:
    text = repr(given)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _map(function: Callable[[Tensor], Tensor], cond: Cond) -> Cond:
    if isinstance(cond, dict):
        return {key: function(value) for key, value in cond.items()}
    return function(cond)


def _zip(function: Callable[[Tensor, Tensor], Tensor], a: Cond, b: Cond) -> Cond:
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            raise ShapeError(
                f"two condition batches must have the same keys, got {sorted(a)} and {sorted(b)}. "
                "Give every key to both."
            )
        return {key: function(a[key], b[key]) for key in a}
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return function(a, b)
    raise ShapeError(
        "of two condition batches, both must be tensors or both must be dicts of tensors, got a "
        f"{type(a).__name__} and a {type(b).__name__}. Encode both in the same way."
    )


def batch_size(cond: Cond) -> int:
    """Return B, the number of examples. Raises ShapeError where tensors differ in B, or B is 0."""
    tensors = list(cond.values()) if isinstance(cond, dict) else [cond]
    sizes = {t.shape[0] if t.ndim else 0 for t in tensors}
    if len(sizes) != 1 or 0 in sizes:
        raise ShapeError(
            "the tensors of a condition must have one batch size, at least 1, got first dimensions "
            f"{sorted(sizes)}. Pass one condition per image."
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
            f"the null condition must be a batch of 1, got a batch of {batch_size(null_cond)}. "
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

    For conditions that are the same in every update: copying from the host each time would wait
    for the device.
    """
    if device not in copies:
        copies[device] = to(cond, device)
    return copies[device]


def send(cond: Cond, device: torch.device) -> Cond:
    """Return the condition on `device`, sent to a GPU through pinned memory without waiting.

    Do not write to the sent tensors before the device has read them.
    """
    if device.type != "cuda":
        return to(cond, device)
    return _map(lambda t: t if t.is_cuda else t.pin_memory().to(device, non_blocking=True), cond)
