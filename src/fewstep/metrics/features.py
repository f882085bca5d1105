"""Feature extractors: from images to features and class logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fewstep.errors import DataError

FD_TO_TEACHER = "fd_to_teacher"  # in any features: a distance to a teacher's samples


class FeatureOutput(NamedTuple):
    """Features (B, D) and class logits (B, K) of a batch of images; None from no classifier."""

    features: Tensor
    logits: Tensor | None


class Features(Protocol):
    """A frozen feature extractor. Metrics carry its name: `fd_digits` for the name "digits"."""

    @property
    def name(self) -> str:
        """Short name, letters and digits: what the metrics are called after."""

    @property
    def sha256(self) -> str:
        """Of the weights and the preprocessing, in hex; figures compare only under one."""

    @property
    def num_classes(self) -> int | None:
        """Classes of the data that the logits are of; None where they are of others, or none."""

    def __call__(self, x: Tensor) -> FeatureOutput:
        """Return the features and logits of x (B, *D) in [-1, 1].

        A row must not depend on the other rows: no batch statistics, no random draws.
        """


def distance_names(features: Features) -> tuple[str, str]:
    """Return what the Fréchet and kernel distances in these features are called.

    `fid` and `kid` in those of the published Inception, and `fd_<name>` and `kd_<name>` in any
    others.
    """
    if getattr(features, "published", False):
        return "fid", "kid"
    return f"fd_{features.name}", f"kd_{features.name}"


def distance_key(row: Mapping[str, Any]) -> str:
    """Return the key of the Fréchet distance to the images in a row of metrics."""
    names = (k for k in row if k == "fid" or k.startswith("fd_"))
    return next(k for k in names if k != FD_TO_TEACHER)


def extract(features: Features, x: Tensor, batch_size: int = 500) -> FeatureOutput:
    """Return the features and logits of all of x (B, *D), batch_size images at a time.

    No gradient is kept. Raises DataError where there are no images or batch_size < 1.
    """
    if not len(x) or batch_size < 1:
        raise DataError(
            f"the number of images and the batch size must be at least 1, got {len(x)} and "
            f"{batch_size}. Pass images, and a batch size that fits in memory."
        )
    with torch.no_grad():
        parts = [features(part) for part in x.split(batch_size)]
    logits = [p.logits for p in parts if p.logits is not None]
    return FeatureOutput(
        torch.cat([p.features for p in parts]), torch.cat(logits) if logits else None
    )
