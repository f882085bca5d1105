"""A student as a LoRA over its teacher: the factors of every layer's difference.

Of a student whose adapter is kept apart they are the adapter's own. Of any other they are the
truncated singular value decomposition of the difference to the teacher's weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.models.lora import NAME
from fewstep.models.w_input import INPUTS

ROUNDING = 1e-6  # of a weight's norm: what float32 changes in merging an adapter and in finding it


@dataclass(frozen=True)
class Factors:
    """The LoRA of one layer: its weight gains up @ down, and its bias `bias`.

    Attributes:
        down: (r, in), or (r, in, kh, kw) of a convolution.
        up: (out, r), or (out, r, 1, 1).
        bias: (out,); None where it is unchanged.
    """

    down: Tensor
    up: Tensor
    bias: Tensor | None = None


def of_adapter(network: Any) -> dict[str, Factors]:
    """Return the factors of the adapter that a network computes with, by the layers' names."""
    scale = network.peft_config[NAME].lora_alpha / network.peft_config[NAME].r
    state, mark = network.state_dict(), f".lora_A.{NAME}.weight"
    return {
        key.removesuffix(mark): Factors(down, state[key.replace("lora_A", "lora_B")] * scale)
        for key, down in state.items()
        if key.endswith(mark)
    }


def of_difference(
    network: nn.Module, base: Mapping[str, Tensor], rank: int, *, biases: bool
) -> tuple[dict[str, Factors], float]:
    """Return the factors of rank `rank` that come nearest to a network, and what they leave out.

    The second result is the norm of what is left out over that of the whole difference: 0 where
    nothing is. What belongs to no linear layer or plain convolution is left out, such as the
    weights of norms: no LoRA can change it.

    Args:
        network: of the student, with its adapter merged.
        base: the weights of the teacher, by the same names.
        rank: at most so many singular values of a layer are kept. Those within the rounding of
            float32 are dropped.
        biases: whether the factors may hold biases.
    """
    factors: dict[str, Factors] = {}
    total = left = 0.0
    with torch.no_grad():
        difference = {
            key: tensor.float() - base[key].float()
            for key, tensor in network.state_dict().items()
            if key not in INPUTS
        }
        changed = {key for key, d in difference.items() if float(d.abs().max()) > 0}
        total = sum(float(d.square().sum()) for d in difference.values())
        for name, layer in network.named_modules():
            weight, bias = f"{name}.weight", f"{name}.bias"
            grouped = getattr(layer, "groups", 1) > 1  # no LoRA has the shape of such a convolution
            if not isinstance(layer, nn.Linear | nn.Conv2d) or grouped or weight not in difference:
                continue
            if not changed & {weight, bias}:
                continue
            exact = biases and bias in changed
            down, up, rest = _truncated(
                difference[weight], float(base[weight].norm()), rank, int(exact)
            )
            left += rest + (0.0 if exact else _square(difference.get(bias)))
            if len(down) or exact:
                factors[name] = Factors(down, up, difference[bias] if exact else None)
            for key in (weight, bias):
                changed.discard(key)
        left += sum(_square(difference[key]) for key in changed)
    return factors, math.sqrt(left / total) if total else 0.0


def _truncated(change: Tensor, norm: float, rank: int, least: int) -> tuple[Tensor, Tensor, float]:
    """Return down, up, and the squared norm of what is left out.

    least: singular values to keep at least, since only a layer with factors can have a bias.
    """
    matrix = change.flatten(1)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    rest = s.square().flip(0).cumsum(0).flip(0)  # of each number of values kept, from 0 on
    needed = int((rest.sqrt() > ROUNDING * norm).sum())
    kept = max(min(rank, needed), least)
    down, up = s[:kept, None].sqrt() * v[:kept], u[:, :kept] * s[:kept].sqrt()
    if change.ndim == 4:
        down, up = down.reshape(kept, *change.shape[1:]), up[:, :, None, None]
    return down, up, float(rest[kept]) if kept < len(rest) else 0.0


def _square(change: Tensor | None) -> float:
    return 0.0 if change is None else float(change.square().sum())
