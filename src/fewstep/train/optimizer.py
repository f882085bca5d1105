"""The optimisers of a training: AdamW of torch, or with moments of 8 bits of bitsandbytes."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import CheckpointError, MissingError, RangeError
from fewstep.train.config import TrainConfig

# Of bitsandbytes: a smaller tensor keeps moments of 32 bits; a larger one has a scale per block.
LEAST_8BIT = 4096
BLOCK = 256


def check_optimizer(config: TrainConfig) -> None:
    """Raise MissingError or RangeError where the optimiser of a training cannot be had."""
    if config.optimizer == "adamw":
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingError(
            "optimizer=adamw8bit needs the package bitsandbytes. In the clone of "
            'fewstep, run: pip install -e ".[adamw8bit]"'
        )
    if config.shard:
        raise RangeError(
            "optimizer must be adamw with shard, which divides its state among the processes "
            "already, got adamw8bit. Leave one of the two out."
        )


def make_optimizer(
    parameters: Sequence[Tensor],
    config: TrainConfig,
    device: torch.device,
    scales: Sequence[float] | None = None,
) -> torch.optim.Optimizer:
    """Return the optimiser that the config names, of these parameters on this device.

    `adamw8bit` keeps both moments in 8 bits with a scale per 256 numbers (Dettmers et al. 2022),
    and those of tensors of fewer than 4,096 numbers in 32 bits.

    scales: of the learning rate, one per parameter; None where all have the one of the config.
    Parameters of one scale that follow each other are a group, which keeps it as "scale".
    """
    check_optimizer(config)
    groups: Any = parameters
    if scales is not None:
        runs = groupby(zip(scales, parameters, strict=True), itemgetter(0))
        groups = [{"params": [p for _, p in run], "scale": scale} for scale, run in runs]
    shared: dict[str, Any] = {
        "lr": config.lr,
        "betas": config.betas,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw8bit":
        import bitsandbytes

        small: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, **shared)
        return small
    return torch.optim.AdamW(groups, **shared, fused=device.type in ("cpu", "cuda"))


def lr_scales(student: nn.Module, names: Sequence[str]) -> list[float] | None:
    """Return the factor of the learning rate of each named parameter; None without `lr_scales`.

    `lr_scales` of the student holds positive factors by the names of modules in it. A factor holds
    for all parameters of its module, unless a module inside has one of its own; elsewhere it is 1.
    Raises RangeError for another factor, and for a name that no module has.
    """
    factors = getattr(student, "lr_scales", None)
    if factors is None:
        return None
    kind = type(student).__name__
    if not isinstance(factors, Mapping):
        raise RangeError(
            f"lr_scales of {kind} must be a dict of positive factors of the learning rate by names "
            f"of modules, got {type(factors).__name__}. Rename an attribute of another meaning."
        )
    modules = {_uncompiled(n) for n, _ in student.named_modules(remove_duplicate=False)}
    for name, factor in factors.items():
        if name not in modules:
            raise RangeError(
                f"lr_scales of {kind} must have names of its modules, got {name!r}. Use a name of "
                "named_modules()."
            )
        if not isinstance(factor, int | float) or not 0.0 < factor < math.inf:
            raise RangeError(
                f"lr_scales of {kind} must be positive finite numbers, got {factor!r} for {name}. "
                "Call requires_grad_(False) on a module that is not to be trained."
            )

    def factor_of(name: str) -> float:
        parts = _uncompiled(name).split(".")
        inside = (".".join(parts[:k]) for k in range(len(parts) - 1, 0, -1))
        return next((float(factors[module]) for module in inside if module in factors), 1.0)

    return [factor_of(name) for name in names]


def _uncompiled(name: str) -> str:
    """Return the name that a parameter or module has without torch.compile."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def state_bytes(count: int, config: TrainConfig) -> int:
    """Return the bytes of the optimiser's state for a float32 tensor of so many numbers."""
    if config.optimizer == "adamw8bit" and count >= LEAST_8BIT:
        return 2 * (count + 4 * -(-count // BLOCK))
    return 2 * 4 * count


def check_groups(
    found: Sequence[Mapping[str, Any]], made: Sequence[Mapping[str, Any]], folder: Path
) -> None:
    """Raise CheckpointError unless a checkpoint has these groups of parameters and their scales."""

    def sizes(groups: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
        return [(len(group["params"]), group.get("scale", 1.0)) for group in groups]

    if sizes(found) != sizes(made):
        raise CheckpointError(
            f"{folder / 'checkpoints'}: the learning rates must be those that the training was "
            "begun with, and the checkpoint has other factors of them (lr_scales). It may be of an "
            "older fewstep: continue it with that version, or remove the folder to train from the "
            "start."
        )


def check_state(
    state: Mapping[int, Mapping[str, Any]], parameters: Sequence[Tensor], folder: Path
) -> None:
    """Raise CheckpointError unless an optimiser's state has the shapes of the parameters.

    Fused optimisers would write past the end of those that are too small.
    """
    for index, entry in state.items():
        shape = parameters[index].shape if index < len(parameters) else None
        if any(m.ndim and m.shape != shape for m in _moments(entry)):
            raise CheckpointError(
                f"{folder / 'checkpoints'}: the optimiser's state must fit the parameters, got "
                f"another shape at number {index}. The checkpoint is of another version of the "
                "network: remove the folder to train from the start."
            )


def _moments(entry: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors of a parameter's state; bitsandbytes keeps some in a dict inside."""
    for name, value in entry.items():
        if isinstance(value, Mapping):
            yield from _moments(value)
        elif isinstance(value, Tensor) and not name.startswith(("qmap", "absmax")):
            yield value
