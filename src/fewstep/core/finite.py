"""Check tensors for NaN and infinity before they become a picture, a latent or a checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.errors import NonFiniteError

ADVICE = "Check the weights and the inputs that it was computed from."


def check_finite(tensor: Tensor, what: str, advice: str = ADVICE) -> Tensor:
    """Return the tensor. Raises NonFiniteError where it holds NaN or infinity.

    Reads the values, so on a GPU it waits for the device: call it where a loop ends, and not in
    every training step.

    Args:
        tensor: of any shape and dtype; integers and booleans are always finite.
        what: what the tensor is, as the subject of the message: "the autoencoder's output".
        advice: what to do about it; a sentence of its own.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise NonFiniteError(
            f"{what} must be finite, got {bad} of {tensor.numel()} values that are NaN or "
            f"infinite. {advice}"
        )
    return tensor


def check_finite_cond(cond: Cond, what: str, advice: str = ADVICE) -> Cond:
    """Return the condition batch. Raises NonFiniteError as `check_finite` does, for any tensor."""
    if isinstance(cond, dict):
        for key, value in cond.items():
            check_finite(value, f"{what} ({key})", advice)
    else:
        check_finite(cond, what, advice)
    return cond
