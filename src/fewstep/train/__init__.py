"""Training: one loop for every stage, with checkpoints that resume exactly."""

from __future__ import annotations

from fewstep.train.config import Optimisation, TrainConfig
from fewstep.train.log import read_metrics
from fewstep.train.loop import Batch, TrainResult, train
from fewstep.train.memory import Estimate, Watch, estimate, in_units
from fewstep.train.processes import leave, lost_processes_are_said, processes

__all__ = [
    "Batch",
    "Estimate",
    "Optimisation",
    "TrainConfig",
    "TrainResult",
    "Watch",
    "estimate",
    "in_units",
    "leave",
    "lost_processes_are_said",
    "processes",
    "read_metrics",
    "train",
]
