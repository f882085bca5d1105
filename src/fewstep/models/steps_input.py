"""How the number of steps enters a network, and how one number is folded into its weights.

An any-step student has an input for the number of steps N, beside the one for w: a projection of
the one-hot vector of N among the numbers that it was made for, zero at first, whose result is added
to the input of the network's timestep embedders. For one N that is a constant before a linear
layer, so it folds into the bias of that layer, and what is left is a student of N steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fewstep.errors import FolderError, RangeError
from fewstep.models.w_input import (
    ADDED,
    STEPS,
    attach,
    first_layer,
    rebuilt,
    restore_w_input,
    steps_projection,
    zero_linear,
)

if TYPE_CHECKING:
    from fewstep.models.families.family import Family

STEPS_RATE = 8.0  # learning rate of the projection, as a multiple of the others'

_kept: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}


def steps_features(steps: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the features (B, len(counts)), float32, of numbers of steps (B,): one-hot vectors.

    A number of steps that is none of the counts raises RangeError on the CPU. On another device
    its features are NaN, because an error would make every call wait for the device.
    """
    key = (tuple(counts), steps.device)
    if key not in _kept:  # a copy from the host would make every call wait for the device
        with torch.inference_mode(False):
            _kept[key] = torch.tensor(key[0]).to(steps.device)
    same = steps[:, None] == _kept[key]
    known = same.any(1, keepdim=True)
    if steps.device.type == "cpu" and not known.all():
        wrong = int(steps[~known[:, 0]][0])
        raise RangeError(
            f"steps must be {', '.join(map(str, counts))}, the numbers that this student was made "
            f"for, got {wrong}. Use one of them."
        )
    return same.float().masked_fill(~known, math.nan)


def add_steps_input(network: Any, family: Family, count: int) -> None:
    """Give a network an input for `count` numbers of steps, whose weight is zero."""
    embedders = family.embedders(network)
    attach(network, embedders, STEPS, zero_linear(count, first_layer(embedders[0])))


def restore_steps_input(network: Any, family: Family, weight: Tensor) -> None:
    """Give a network the input of a saved student. Raises FolderError for another size."""
    size = first_layer(family.embedders(network)[0]).in_features
    if weight.ndim != 2 or len(weight) != size:
        raise FolderError(
            f"{STEPS}.weight must be a matrix of {size} rows, got the shape {list(weight.shape)}. "
            "Copy the whole folder again."
        )
    add_steps_input(network, family, weight.shape[1])
    with torch.no_grad():
        projection(network).weight.copy_(weight)


def projection(network: Any) -> nn.Linear:
    """Return the layer that projects the features of the number of steps, which must be there."""
    found = steps_projection(network)
    assert found is not None
    return found


def fold(network: Any, family: Family, index: int) -> Any:
    """Return a copy of the network in which one number of steps is fixed, without an input for it.

    Its input for w stays. `b += W1 P f(N)` in the first layer of each embedder, with f one-hot. The
    network has no adapter.

    index: of N among the numbers that the student was made for.
    """
    weight = projection(network).weight
    state = network.state_dict()
    of_w = state.pop(f"{ADDED}.weight", None)
    del state[f"{STEPS}.weight"]
    made = rebuilt(network, {})
    made.load_state_dict(state)
    if of_w is not None:
        restore_w_input(made, family, ADDED, of_w)
    with torch.no_grad():
        constant = weight[:, index].double()
        for embedder in family.embedders(made):
            first = first_layer(embedder)
            first.bias.add_((first.weight.double() @ constant).to(first.bias.dtype))
    return made.train(network.training)
