"""Training: one loop for every stage, with checkpoints that resume exactly."""

from __future__ import annotations

from fewstep.train.checkpoint import begun_run, extend_run
from fewstep.train.config import Optimisation, TrainConfig
from fewstep.train.log import read_metrics
from fewstep.train.loop import Batch, TrainResult, check_tracking, check_trainable, train
from fewstep.train.memory import Estimate, Watch, estimate
from fewstep.train.processes import leave, processes, translate_peer_failures
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
    "begun_run",
    "check_tracking",
    "check_trainable",
    "estimate",
    "extend_run",
    "leave",
    "memory_limit",
    "processes",
    "read_metrics",
    "train",
    "translate_peer_failures",
]
