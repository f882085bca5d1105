"""Guidance as a LoRA: a matrix of rank 1 on the first layer of the timestep embedder.

A student of the one feature s = sin(0.1 w) adds p s to the embedding t of a timestep, before the
first layer W1 of its timestep embedder: W1 (t + p s) + b. Over the N timesteps t_1 ... t_N that the
student is made for, the least-norm vector q with q . t_i = 1 gives dW = (W1 p) q^T, for which
(W1 + s dW) t_i + b is the same. So dW is a LoRA of rank 1, and its strength s is the guidance.

Chroma's first layer is given many tokens, all with the same features of a guidance weight of 0
among others: with these for the t_i it holds at every timestep.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import RangeError
from fewstep.models.families import Family
from fewstep.models.w_input import first_layer, one_feature, projection_of

MOST_CONDITION = 100.0  # of the timesteps' embeddings: float16 then still has one digit
ROWS = 16  # of the table of strengths


def slider_factors(
    network: Any, family: Family, timesteps: Tensor
) -> tuple[str, tuple[Tensor, Tensor]]:
    """Return the name of the layer, and (down (1, D), up (H, 1)): down is q, and up is W1 p.

    network: its adapter is merged. timesteps: (N,), those that it is asked at.
    Raises RangeError where no q is there, or float16 could not hold its effect.
    """
    projection, first = projection_of(network), first_layer(family.embedders(network)[0])
    assert projection is not None
    assert family.time_features is not None
    layer = next(name for name, module in network.named_modules() if module is first)
    with torch.no_grad():
        embeddings = family.time_features(network, timesteps.to(network.device)).double()
        up = (
            first.weight.double()
            @ projection.weight[:, one_feature(projection.in_features)].double()
        )
    down = least_norm(embeddings)
    return layer, (down[None, :].float().cpu(), up[:, None].float().cpu())


def least_norm(embeddings: Tensor) -> Tensor:
    """Return the q (D,) of least norm with q . t_i = 1 for every row of t (N, D), float64.

    Raises RangeError where the rows are nearly dependent, by the condition number of t.
    """
    count, dim = embeddings.shape
    values = torch.linalg.svdvals(embeddings)
    condition = float(values[0] / values[-1]) if count <= dim else math.inf
    if not condition <= MOST_CONDITION:
        raise RangeError(
            f"the embeddings of the {count} timesteps must have a condition number of at most "
            f"{MOST_CONDITION:g} for guidance to be a LoRA, got {condition:.3g} in {dim} "
            "dimensions. Export a student of fewer steps, or --to diffusers."
        )
    q: Tensor = torch.linalg.pinv(embeddings) @ embeddings.new_ones(count)
    return q


def strength(w: float) -> float:
    """Return the strength of the slider at a guidance weight: sin(0.1 w)."""
    return math.sin(0.1 * w)


def table(w_range: tuple[float, float]) -> dict[str, float]:
    """Return w -> strength of the slider: both ends of the range and the whole numbers between."""
    low, high = w_range
    every = max(1, math.ceil((high - low) / ROWS))
    between = [w for w in range(math.ceil(low), math.floor(high) + 1, every) if low < w < high]
    return {f"{w:g}": round(strength(w), 6) for w in (low, *between, high)}
