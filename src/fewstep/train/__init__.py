"""Training: one loop for every stage, with checkpoints that resume exactly."""

from __future__ import annotations

from fewstep.train.checkpoint import begun_run, extend_run
from fewstep.train.config import Optimisation, TrainConfig
from fewstep.train.log import read_metrics
from fewstep.train.loop import Batch, TrainResult, check_tracking, check_trainable, train
from fewstep.train.memory import Estimate, Watch, estimate
from fewstep.train.processes import (
    agreed,
    gathered,
    is_main,
    leave,
    main_first,
    processes,
    rank_and_count,
    translate_peer_failures,
)
from fewstep.train.room import memory_limit
from fewstep.train.track import Track

__all__ = [
    "Batch",
    "Estimate",
    "Optimisation",
    "Track",
    "TrainConfig",
    "TrainResult",
    "Watch",
    "agreed",
    "begun_run",
    "check_tracking",
    "check_trainable",
    "estimate",
    "extend_run",
    "gathered",
    "is_main",
    "leave",
    "main_first",
    "memory_limit",
    "processes",
    "rank_and_count",
    "read_metrics",
    "train",
    "translate_peer_failures",
]
