"""All figures of one cell: the samples of one model, sampler, number of steps and w."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fewstep.errors import DataError, NonFiniteError
from fewstep.metrics.diversity import nearest_distance, within_class_variance
from fewstep.metrics.features import Features, extract
from fewstep.metrics.frechet import Moments, frechet_distance, moments
from fewstep.metrics.paired import paired_rms
from fewstep.metrics.score import accuracy, class_score


@dataclass(frozen=True)
class Reference:
    """The training images, as the metrics see them; build it once for many cells.

    Attributes:
        name: of the features.
        moments: of the training images' features.
        images: the training images, (N, *D) in [-1, 1].
    """

    name: str
    moments: Moments
    images: Tensor

    @classmethod
    def build(cls, images: Tensor, features: Features) -> Reference:
        """Return the reference of training images (N, *D), N at least 2, under the features."""
        return cls(features.name, moments(extract(features, images).features), images)


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
    `score` and `accuracy` of its classifier, sanity checks which class averages pass perfectly;
    `variance` within a class, on pixels; `nearest`, the distance to the nearest training image;
    `rms_to_teacher`, None without teacher_samples.

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
    return {
        f"fd_{features.name}": frechet_distance(moments(out.features), reference.moments),
        "score": class_score(out.logits),
        "accuracy": accuracy(out.logits, labels),
        "variance": within_class_variance(samples, labels),
        "nearest": nearest_distance(samples, reference.images),
        "rms_to_teacher": paired,
    }


def _check_finite(what: str, x: Tensor) -> None:
    bad = ~x.isfinite().flatten(1).all(dim=1)
    if bool(bad.any()):
        raise NonFiniteError(
            f"{int(bad.sum())} of {len(x)} {what} are infinite or not a number; all must be "
            "finite. Sample again, or train the model anew."
        )
