"""Learning rate and averaging as functions of the update: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from fewstep.train.config import TrainConfig


def lr_at(update: int, config: TrainConfig) -> float:
    """Return the learning rate of update 0, 1, ..., updates - 1."""
    warm = min(1.0, (update + 1) / (config.warmup + 1))
    progress = update / config.updates
    if config.decay == "linear":
        fall = 1.0 - progress
    elif config.decay == "cosine":
        fall = 0.5 * (1.0 + math.cos(math.pi * progress))
    else:
        fall = 1.0
    return config.lr * warm * (config.lr_final + (1.0 - config.lr_final) * fall)


def ema_at(update: int, config: TrainConfig) -> float:
    """Return the decay of the average at an update: min(ema, (1 + update) / (10 + update))."""
    return min(config.ema, (1 + update) / (10 + update))
