"""Class score and accuracy of samples, sanity checks only: class averages score perfectly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.errors import DataError, ShapeError


def class_score(logits: Tensor) -> float:
    """Return the inception-style score exp(E KL(p(y|x) || p(y))), between 1 and K.

    logits: (B, K). For probabilities p give `p.log()`, a logarithm being a logit (minus infinity
    for 0). p(y) is the mean over all B samples, in one piece, in float64.

    Raises ShapeError unless logits are (B, K), and DataError for no samples.

    Source: Salimans et al. 2016, arXiv:1606.03498, section 4.
    """
    running = RunningScore()
    running.add(logits)
    return running.value()


class RunningScore:
    """The class score of samples that come batch by batch."""

    def __init__(self) -> None:
        self._count, self._own = 0, 0.0
        self._sum = torch.zeros((), dtype=torch.float64)

    def add(self, logits: Tensor) -> None:
        """Add the logits (B, K) of some samples. Raises errors as `class_score` does."""
        _check(logits)
        log_p = logits.detach().to("cpu", torch.float64).log_softmax(dim=1)
        p = log_p.exp()
        self._own += float(torch.where(p > 0, p * log_p, 0.0).sum())
        self._sum = self._sum + p.sum(dim=0)
        self._count += len(p)

    def value(self) -> float:
        """Return the score of all."""
        mean = self._sum / self._count
        between = torch.where(mean > 0, mean * mean.log(), 0.0).sum()
        return math.exp(self._own / self._count - float(between))


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of samples whose largest logit (B, K) is that of their label (B,), 0 to 1.

    Raises ShapeError unless the shapes fit, and DataError for no samples.
    """
    _check(logits)
    if labels.shape != logits.shape[:1]:
        raise ShapeError(
            f"labels have shape {tuple(labels.shape)}; logits of shape {tuple(logits.shape)} take "
            f"({len(logits)},). Pass one class id per sample."
        )
    return float((logits.argmax(dim=1) == labels.to(logits.device)).double().mean())


def _check(logits: Tensor) -> None:
    if logits.ndim != 2:
        raise ShapeError(
            f"logits must be (B, K), got the shape {tuple(logits.shape)}. Pass one row per sample."
        )
    if not len(logits):
        raise DataError("logits of 0 samples; a score takes at least 1. Draw some samples.")
