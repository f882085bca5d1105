"""Training: one loop for every stage, with checkpoints that resume exactly."""

from __future__ import annotations

from fewstep.train.config import Optimisation, TrainConfig
from fewstep.train.log import read_metrics
from fewstep.train.loop import Batch, TrainResult, train

__all__ = ["Batch", "Optimisation", "TrainConfig", "TrainResult", "read_metrics", "train"]
