"""All figures of one cell: the samples of one model, sampler, number of steps and w."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.errors import DataError, FewstepError, NonFiniteError
from fewstep.metrics.diversity import nearest_distance, within_class_variance
from fewstep.metrics.features import Features, distance_names, extract
from fewstep.metrics.figures import RMS, Figures
from fewstep.metrics.frechet import Moments, frechet_distance, moments
from fewstep.metrics.kernel import kernel_distance
from fewstep.metrics.manifold import precision_recall
from fewstep.metrics.paired import paired_rms
from fewstep.metrics.score import accuracy, class_score

LinAlgError = torch.linalg.LinAlgError  # type: ignore[attr-defined]  # torch does not export it
PAIRED = 10_000
NEIGHBOURS = 3


class Measured(NamedTuple):
    """Figures of a cell, and why some of them are None.

    missing: the reason of each figure that is None, by its name, but of `rms_to_teacher` where
    there are no teacher samples.
    """

    figures: Figures
    missing: dict[str, str]


@dataclass(frozen=True)
class Reference:
    """The training images, as the metrics see them; build it once for many cells.

    Attributes:
        name: of the features.
        moments: of the training images' features; None for a single image, which has none.
        images: the training images, (N, *D) in [-1, 1]; None where they do not fit in memory.
        features: of at most 10,000 of them, evenly chosen, for the metrics that compare pairs.
        count: N, the number of training images.
    """

    name: str
    moments: Moments | None
    images: Tensor | None
    features: Tensor

    @property
    def count(self) -> int:
        """The number of training images."""
        return len(self.features) if self.moments is None else self.moments.count

    @classmethod
    def build(cls, images: Tensor, features: Features) -> Reference:
        """Return the reference of training images (N, *D), N at least 1, under the features."""
        return cls.of_batches([images], features, images)

    @classmethod
    def of_batches(
        cls, batches: Iterable[Tensor], features: Features, images: Tensor | None
    ) -> Reference:
        """Return the reference of images that come batch by batch.

        images: all of them, or None where they are too many to keep: `nearest` is None then.
        """
        found = torch.cat([extract(features, batch).features for batch in batches])
        known = moments(found) if len(found) > 1 else None
        return cls(features.name, known, images, _evenly(found, PAIRED))


def measure(
    samples: Tensor,
    labels: Tensor | None,
    *,
    features: Features,
    reference: Reference,
    teacher_samples: Tensor | None = None,
) -> dict[str, float | None]:
    """Return the figures of samples: a finite float each, or None where it cannot be measured.

    `fd_<name>`, the Fréchet distance to the training images in the features of that name;
    `kd_<name>`, the kernel distance to (at most 10,000 of) them; `precision` and `recall` against
    as many of them as there are samples, None for 3 samples or fewer;
    `score` and `accuracy` of its classifier, sanity checks which class averages pass perfectly,
    None where it has no logits or (accuracy) they are not of the data's classes;
    `variance` within a class, on pixels; `nearest`, the distance to the nearest training image;
    `rms_to_teacher`, None without teacher_samples. The published Inception's distances are
    called `fid` and `kid`.

    Args:
        samples: (B, *D) in [-1, 1].
        labels: (B,) the class ids they were asked for; None where the images have no classes.
        features: what the reference was built with.
        reference: of the training images.
        teacher_samples: (B, *D) the many-step teacher's samples from the same noise.

    Raises:
        DataError: no samples, or a reference of other features.
        ShapeError: shapes that do not fit.
        NonFiniteError: a sample is infinite or not a number.
    """
    measured = measure_all(
        samples, labels, features=features, reference=reference, teacher_samples=teacher_samples
    )
    return measured.figures.by_name


def measure_all(
    samples: Tensor,
    labels: Tensor | None,
    *,
    features: Features,
    reference: Reference,
    teacher_samples: Tensor | None = None,
) -> Measured:
    """Return the figures of samples, and the reason of each one that is None.

    Arguments and errors are those of `measure`. Too few samples, too few training images or a
    class with a single sample are no errors: the figures that need more are None.
    """
    if reference.name != features.name:
        raise DataError(
            f"the reference is of the features {reference.name!r} and the features are "
            f"{features.name!r}; they must be the same. Build the reference again."
        )
    _check_finite("samples", samples)
    paired = None
    if teacher_samples is not None:
        _check_finite("teacher samples", teacher_samples)
        paired = paired_rms(samples, teacher_samples)
    out = extract(features, samples)
    place = getattr(features, "device", torch.device("cpu"))
    there = out.features.to(place)  # where comparing with every training image is quick
    fd, kd = distance_names(features)
    found: dict[str, float | None] = {}
    missing: dict[str, str] = {}

    def take(names: tuple[str, ...], compute: Callable[[], tuple[float, ...]]) -> None:
        try:
            values = compute()
        except (DataError, NonFiniteError, LinAlgError) as error:
            found.update(dict.fromkeys(names))
            missing.update(dict.fromkeys(names, _reason(error)))
            return
        for name, value in zip(names, values, strict=True):
            found[name] = value if math.isfinite(value) else None
            if not math.isfinite(value):
                missing[name] = "The result is infinite or not a number."

    def frechet() -> tuple[float, ...]:
        if reference.moments is None:
            raise DataError(
                f"a Fréchet distance needs at least 2 training images, got {reference.count}."
            )
        return (frechet_distance(moments(out.features), reference.moments),)

    take((fd,), frechet)
    take((kd,), lambda: (kernel_distance(there, reference.features),))
    take(("precision", "recall"), lambda: _precision_recall(there, reference.features))
    take(("score",), lambda: (class_score(_logits(out.logits, features)),))
    take(("accuracy",), lambda: (_accuracy(out.logits, labels, features),))
    take(("variance",), lambda: (within_class_variance(samples, _labels(labels)),))
    take(("nearest",), lambda: (nearest_distance(samples.to(place), _images(reference)),))
    found[RMS] = paired
    return Measured(Figures.named(found), missing)


def no_figures(features: Features, reason: str) -> Measured:
    """Return the figures of samples that cannot be measured at all: None each, for one reason."""
    figures = Figures(distance_names(features)[0])
    names = (name for name in figures.by_name if name != RMS)
    return Measured(figures, dict.fromkeys(names, reason))


def _reason(error: Exception) -> str:
    if isinstance(error, FewstepError):
        text = str(error)
        return text[:1].upper() + text[1:]
    return "The covariance of the features could not be decomposed."


def _precision_recall(samples: Tensor, real: Tensor) -> tuple[float, float]:
    if not bool(samples.isfinite().all()):
        raise NonFiniteError("the features of some samples are infinite or not a number.")
    count = min(len(samples), len(real))
    return precision_recall(_evenly(samples, count), _evenly(real, count), neighbours=NEIGHBOURS)


def _logits(logits: Tensor | None, features: Features) -> Tensor:
    if logits is None:
        raise DataError(f"the features {features.name!r} have no classifier.")
    if bool(logits.isnan().any()):
        raise NonFiniteError("the classifier gives values that are not a number.")
    return logits


def _accuracy(logits: Tensor | None, labels: Tensor | None, features: Features) -> float:
    logits, known = _logits(logits, features), features.num_classes
    if known is None:
        raise DataError(
            f"the classifier of the features {features.name!r} was not trained on the classes of "
            "these images."
        )
    labels = _labels(labels)
    if int(labels.max()) >= known:
        raise DataError(
            f"the images have a class {int(labels.max())} and the classifier of the features "
            f"{features.name!r} knows {known} classes."
        )
    return accuracy(logits, labels)


def _labels(labels: Tensor | None) -> Tensor:
    if labels is None:
        raise DataError("the images have captions and no classes.")
    return labels


def _images(reference: Reference) -> Tensor:
    if reference.images is None:
        raise DataError(
            f"the {reference.count:,} training images do not fit in memory, and this figure "
            "compares pixels with all of them."
        )
    return reference.images


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
