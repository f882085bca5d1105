"""All figures of one cell: the samples of one model, sampler, number of steps and w."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import DataError, NonFiniteError
from fewstep.metrics.diversity import nearest_distance, within_class_variance
from fewstep.metrics.features import Features, distance_names, extract
from fewstep.metrics.frechet import Moments, frechet_distance, moments
from fewstep.metrics.kernel import kernel_distance
from fewstep.metrics.manifold import precision_recall
from fewstep.metrics.paired import paired_rms
from fewstep.metrics.score import accuracy, class_score

PAIRED = 10_000
NEIGHBOURS = 3


@dataclass(frozen=True)
class Reference:
    """The training images, as the metrics see them; build it once for many cells.

    Attributes:
        name: of the features.
        moments: of the training images' features.
        images: the training images, (N, *D) in [-1, 1].
        features: of at most 10,000 of them, evenly chosen, for the metrics that compare pairs.
    """

    name: str
    moments: Moments
    images: Tensor
    features: Tensor

    @classmethod
    def build(cls, images: Tensor, features: Features) -> Reference:
        """Return the reference of training images (N, *D), N at least 2, under the features."""
        found = extract(features, images).features
        return cls(features.name, moments(found), images, _evenly(found, PAIRED))


def measure(
    samples: Tensor,
    labels: Tensor,
    *,
    features: Features,
    reference: Reference,
    teacher_samples: Tensor | None = None,
) -> dict[str, Any]:
    """Return the figures of samples: a float each, never NaN, or None where there is no such thing.

    `fd_<name>`, the Fréchet distance to the training images in the features of that name;
    `kd_<name>`, the kernel distance to (at most 10,000 of) them; `precision` and `recall` against
    as many of them as there are samples, None for 3 samples or fewer;
    `score` and `accuracy` of its classifier, sanity checks which class averages pass perfectly,
    None where it has no logits or (accuracy) they are not of the data's classes;
    `variance` within a class, on pixels; `nearest`, the distance to the nearest training image;
    `rms_to_teacher`, None without teacher_samples. The published Inception's distances are
    called `fid` and `kid`.

    Args:
        samples: (B, *D) in [-1, 1], at least 2 of each class that occurs.
        labels: (B,) the class ids they were asked for.
        features: what the reference was built with.
        reference: of the training images.
        teacher_samples: (B, *D) the many-step teacher's samples from the same noise.

    Raises:
        DataError: too few samples, or a reference of other features.
        ShapeError: shapes that do not fit.
        NonFiniteError: a sample is infinite or not a number.
    """
    if reference.name != features.name:
        raise DataError(
            f"the reference is of the features {reference.name!r} and the features are "
            f"{features.name!r}; they must be the same. Build the reference again."
        )
    _check_finite("samples", samples)
    out = extract(features, samples)
    paired = None
    if teacher_samples is not None:
        _check_finite("teacher samples", teacher_samples)
        paired = paired_rms(samples, teacher_samples)
    classifies = out.logits is not None and features.num_classes is not None
    precision, recall = _precision_recall(out.features, reference.features)
    fd, kd = distance_names(features)
    return {
        fd: frechet_distance(moments(out.features), reference.moments),
        kd: kernel_distance(out.features, reference.features),
        "precision": precision,
        "recall": recall,
        "score": None if out.logits is None else class_score(out.logits),
        "accuracy": accuracy(out.logits, labels) if classifies and out.logits is not None else None,
        "variance": within_class_variance(samples, labels),
        "nearest": nearest_distance(samples, reference.images),
        "rms_to_teacher": paired,
    }


def _precision_recall(samples: Tensor, real: Tensor) -> tuple[float | None, float | None]:
    count = min(len(samples), len(real))
    if count <= NEIGHBOURS:
        return None, None
    return precision_recall(_evenly(samples, count), _evenly(real, count), neighbours=NEIGHBOURS)


def _evenly(x: Tensor, count: int) -> Tensor:
    if len(x) <= count:
        return x
    return x[torch.linspace(0, len(x) - 1, count).round().long()]


def _check_finite(what: str, x: Tensor) -> None:
    bad = ~x.isfinite().flatten(1).all(dim=1)
    if bool(bad.any()):
        raise NonFiniteError(
            f"{int(bad.sum())} of {len(x)} {what} are infinite or not a number; all must be "
            "finite. Sample again, or train the model anew."
        )
