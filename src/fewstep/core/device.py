"""The device that a command or function computes on, checked once."""

from __future__ import annotations

import torch

from fewstep.errors import RangeError


def choose_device(name: str | None = None) -> str:
    """Return the device to use: the one that is asked for, or the first GPU, or "cpu".

    Args:
        name: "cpu", "cuda" or "cuda:N" with N the index of a GPU; None takes "cuda" where there
            is a GPU, and "cpu" otherwise.

    Raises:
        RangeError: another name, or a GPU that this machine does not have. A GPU that was asked
            for is never replaced by the CPU.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        return "cuda" if count else "cpu"
    kind, colon, index = name.partition(":")
    is_index = index.isascii() and index.isdigit() and len(index) < 4
    if name != "cpu" and not (kind == "cuda" and (is_index or not colon)):
        raise RangeError(
            f'device must be "cpu", "cuda" or "cuda:N", got {name!r}. Use cpu, or leave it out to '
            "use the GPU where there is one."
        )
    if kind == "cuda" and int(index or 0) >= count:
        found = f"{count} GPU{'s' if count > 1 else ''}" if count else "no GPU"
        raise RangeError(
            f"device must exist on this machine, got {name!r}: PyTorch finds {found} here. Use "
            f"{f'cuda:0 to cuda:{count - 1}' if count else 'cpu'}, or leave it out."
        )
    return name
