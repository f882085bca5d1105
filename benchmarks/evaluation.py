"""The metrics: seconds and memory, and how they grow with samples and with features."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from measure import Peak, Result, Row, Setting, Table
from torch import Tensor

from fewstep.metrics import (
    Moments,
    class_score,
    frechet_distance,
    kernel_distance,
    moments,
    nearest_distance,
    precision_recall,
)

SAMPLES, WIDTHS = (500, 1_000, 2_000, 4_000), (64, 256, 1_024, 2_048)
SHAPE, TRAIN = (3, 16, 16), 4_000


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return seconds, and the MiB of tensors made on the way."""
    begun = time.perf_counter()
    work()
    seconds = time.perf_counter() - begun
    return seconds, Peak(Setting()).of(work) / 2**20


def row(first: Row, works: dict[str, Callable[[], object]]) -> Row:
    out, peak = dict(first), 0.0
    for name, work in works.items():
        out[f"{name}, s"], used = timed(work)
        peak = max(peak, used)
    return {**out, "peak MiB": peak}


def reference(features: Tensor) -> Moments:
    """Return the moments that many cells are compared with; the first comparison is made here."""
    found = moments(features)
    frechet_distance(found, found)
    return found


def gaussian(count: int, *shape: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))


def by_samples(count: int, width: int = 256) -> Row:
    a, b = gaussian(count, width), gaussian(count + 1, width)[1:]
    x, train = gaussian(count, *SHAPE), gaussian(TRAIN, *SHAPE)
    logits, m = gaussian(count, 10), reference(b)
    return row(
        {"samples": count},
        {
            "Frechet": lambda: frechet_distance(moments(a), m),
            "kernel": lambda: kernel_distance(a, b),
            "precision and recall": lambda: precision_recall(a, b),
            "nearest of 4,000": lambda: nearest_distance(x, train),
            "score": lambda: class_score(logits),
        },
    )


def by_features(width: int, count: int = 1_000) -> Row:
    a, b = gaussian(count, width), gaussian(count + 1, width)[1:]
    m = reference(b)
    return row(
        {"features": width},
        {
            "Frechet": lambda: frechet_distance(moments(a), m),
            "kernel": lambda: kernel_distance(a, b),
            "precision and recall": lambda: precision_recall(a, b),
        },
    )


def run(setting: Setting) -> Result:
    del setting  # the metrics are computed in float64 on the CPU wherever the features come from
    return Result(
        __doc__ + ABOUT,
        [
            Table("Growth with samples, 256 features", [by_samples(n) for n in SAMPLES]),
            Table("Growth with features, 1,000 samples", [by_features(n) for n in WIDTHS]),
        ],
    )


ABOUT = """

In float64 on the CPU, wherever the features come from. One reading each; "peak" is of the tensors
that the greediest of them makes.
"""
