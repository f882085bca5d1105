"""All figures of one cell: the samples of one model, sampler, number of steps and w."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.errors import DataError, FewstepError, NonFiniteError, ShapeError
from fewstep.metrics.diversity import RunningVariance
from fewstep.metrics.features import (
    FD_TO_TEACHER,
    FeatureOutput,
    Features,
    distance_names,
    extract,
)
from fewstep.metrics.figures import RMS, Figures
from fewstep.metrics.frechet import Moments, RunningMoments, frechet_distance
from fewstep.metrics.kernel import kernel_distance
from fewstep.metrics.manifold import precision_recall
from fewstep.metrics.paired import RunningRms
from fewstep.metrics.reference import Picked, Reference, evenly
from fewstep.metrics.rows import Rows
from fewstep.metrics.score import RunningScore

LinAlgError = torch.linalg.LinAlgError  # type: ignore[attr-defined]  # torch does not export it
AT_ONCE = 500  # samples of a tensor that are looked at together
NEIGHBOURS = 3


class Measured(NamedTuple):
    """Figures of a cell, and why some of them are None.

    missing: the reason of each figure that is None, by its name, but of `rms_to_teacher` and
    `fd_to_teacher` where there is nothing of a teacher to compare with.
    """

    figures: Figures
    missing: dict[str, str]


def measure(
    samples: Tensor,
    labels: Tensor | None,
    *,
    features: Features,
    reference: Reference,
    teacher_samples: Tensor | None = None,
    teacher_moments: Moments | None = None,
) -> dict[str, float | None]:
    """Return the figures of samples: a finite float each, or None where it cannot be measured.

    `fd_<name>`, the Fréchet distance to the training images in the features of that name;
    `kd_<name>`, the kernel distance to (at most 10,000 of) them; `precision` and `recall` against
    as many of them as there are samples, None for 3 samples or fewer;
    `score` and `accuracy` of its classifier, sanity checks which class averages pass perfectly,
    None where it has no logits or (accuracy) they are not of the data's classes;
    `variance` within a class, on pixels; `nearest`, the distance to the nearest training image;
    `rms_to_teacher`, None without teacher_samples; `fd_to_teacher`, the Fréchet distance to the
    teacher's own samples, None without teacher_moments. The published Inception's distances to the
    images are called `fid` and `kid`.

    Args:
        samples: (B, *D) in [-1, 1].
        labels: (B,) the class ids they were asked for; None where the images have no classes.
        features: what the reference was built with.
        reference: of the training images.
        teacher_samples: (B, *D) the many-step teacher's samples from the same noise.
        teacher_moments: of the many-step teacher's samples from other noise, in these features.

    Raises:
        DataError: no samples, or a reference of other features.
        ShapeError: shapes that do not fit.
        NonFiniteError: a sample is infinite or not a number.
    """
    measured = measure_all(
        samples,
        labels,
        features=features,
        reference=reference,
        teacher_samples=teacher_samples,
        teacher_moments=teacher_moments,
    )
    return measured.figures.by_name


def measure_all(
    samples: Tensor,
    labels: Tensor | None,
    *,
    features: Features,
    reference: Reference,
    teacher_samples: Tensor | None = None,
    teacher_moments: Moments | None = None,
) -> Measured:
    """Return the figures of samples, and the reason of each one that is None.

    Arguments and errors are those of `measure`. Too few samples, too few training images or a
    class with a single sample are no errors: the figures that need more are None.
    """
    check_finite_images("samples", samples)
    if teacher_samples is not None:
        check_finite_images("teacher samples", teacher_samples)
    with Rows() as rows:
        measuring = Measuring(len(samples), labels, features, reference, rows, teacher_moments)
        for first in range(0, max(1, len(samples)), AT_ONCE):
            part = slice(first, first + AT_ONCE)
            few = samples[part]
            pair = None if teacher_samples is None else (few, teacher_samples[part])
            measuring.add(few, extract(features, few), pair)
        return measuring.measured()


class Measuring:
    """The figures of samples that come batch by batch, in order.

    The memory that it takes does not grow with the number of samples: features go to the disk.
    """

    def __init__(
        self,
        count: int,
        labels: Tensor | None,
        features: Features,
        reference: Reference,
        rows: Rows,
        teacher_moments: Moments | None = None,
    ) -> None:
        """Expect `count` samples with these labels, (count,) or None; arguments as in `measure`.

        rows: an empty place for their features.

        Raises DataError for a reference of other features, ShapeError for labels that do not fit.
        """
        if reference.name != features.name:
            raise DataError(
                f"the reference is of the features {reference.name!r} and the features are "
                f"{features.name!r}; they must be the same. Build the reference again."
            )
        if labels is not None and labels.shape != (count,):
            raise ShapeError(
                f"labels must have the shape ({count},), got {tuple(labels.shape)}. Pass one class "
                "id per sample."
            )
        self._labels, self._features, self._reference = labels, features, reference
        self._teacher_moments = teacher_moments
        # Where comparing with every training image is quick.
        self._device: torch.device = getattr(features, "device", torch.device("cpu"))
        self._nearest = reference.nearest(self._device)
        self._seen, self._right, self._distances = 0, 0, 0.0
        self._rows, self._moments = rows, RunningMoments()
        self._picked = Picked(count, len(reference.features))
        self._score: RunningScore | None = None
        self._score_is_nan = False
        self._variance = None if labels is None else RunningVariance(labels)
        self._rms: RunningRms | None = None

    def add(
        self, samples: Tensor, out: FeatureOutput, pair: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Add the next samples (B, *D), finite, with their features.

        pair: the samples and the teacher's, (B, *D) each, as the paired distance compares them.
        """
        part = slice(self._seen, self._seen + len(samples))
        self._seen += len(samples)
        if pair is not None:
            self._rms = self._rms or RunningRms()
            self._rms.add(*pair)
        self._moments.add(out.features)
        self._rows.append(out.features)
        self._picked.add(out.features)
        labels = None if self._labels is None else self._labels[part]
        if out.logits is not None:
            self._score = self._score or RunningScore()
            self._score.add(out.logits)
            self._score_is_nan |= bool(out.logits.isnan().any())
            if labels is not None:
                self._right += int((out.logits.argmax(dim=1) == labels.to(out.logits.device)).sum())
        if self._variance is not None and labels is not None:
            self._variance.add(samples, labels)
        if self._nearest is not None:
            self._distances += float(self._nearest.distances(samples).sum())

    def measured(self) -> Measured:
        """Return the figures of the samples so far, and the reason of each that is None."""
        fd, kd = distance_names(self._features)
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

        own = cache(self._moments.moments)  # with their decomposition, for both distances
        take((fd,), lambda: (self._frechet(own),))
        take((kd,), lambda: (self._kernel(),))
        take(("precision", "recall"), self._precision_recall)
        take(("score",), lambda: (self._scored().value(),))
        take(("accuracy",), lambda: (self._accuracy(),))
        take(("variance",), lambda: (self._within_class(),))
        take(("nearest",), lambda: (self._nearest_distance(),))
        found[RMS] = None if self._rms is None else self._rms.value()
        if self._teacher_moments is not None:
            theirs = self._teacher_moments
            take((FD_TO_TEACHER,), lambda: (frechet_distance(own(), theirs),))
        return Measured(Figures.named(found), missing)

    def _frechet(self, own: Callable[[], Moments]) -> float:
        theirs = self._reference.moments
        if theirs is None:
            raise DataError(
                f"a Fréchet distance needs at least 2 training images, got {self._reference.count}."
            )
        return frechet_distance(own(), theirs)

    def _kernel(self) -> float:
        return kernel_distance(self._rows, self._reference.features, device=self._device)

    def _precision_recall(self) -> tuple[float, float]:
        if self._moments.bad:
            raise NonFiniteError("the features of some samples are infinite or not a number.")
        samples, real = self._picked.rows.to(self._device), self._reference.features
        return precision_recall(
            samples, real[evenly(len(samples), len(real))], neighbours=NEIGHBOURS
        )

    def _scored(self) -> RunningScore:
        if self._score is None:
            raise DataError(f"the features {self._features.name!r} have no classifier.")
        if self._score_is_nan:
            raise NonFiniteError("the classifier gives values that are not a number.")
        return self._score

    def _accuracy(self) -> float:
        self._scored()
        known = self._features.num_classes
        if known is None:
            raise DataError(
                f"the classifier of the features {self._features.name!r} was not trained on the "
                "classes of these images."
            )
        labels = self._classes()
        if int(labels.max()) >= known:
            raise DataError(
                f"the images have a class {int(labels.max())} and the classifier of the features "
                f"{self._features.name!r} knows {known} classes."
            )
        return self._right / self._seen

    def _classes(self) -> Tensor:
        if self._labels is None:
            raise DataError("the images have captions and no classes.")
        return self._labels

    def _within_class(self) -> float:
        self._classes()
        assert self._variance is not None
        return self._variance.value()

    def _nearest_distance(self) -> float:
        if self._nearest is None:
            raise DataError(
                f"the {self._reference.count:,} training images do not fit in memory, and this "
                "figure compares pixels with all of them."
            )
        return self._distances / self._seen


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


def check_finite_images(what: str, x: Tensor) -> None:
    """Raise NonFiniteError where images (B, *D) are infinite or not a number."""
    bad = ~x.isfinite().flatten(1).all(dim=1)
    if bool(bad.any()):
        raise NonFiniteError(
            f"{int(bad.sum())} of {len(x)} {what} are infinite or not a number; all must be "
            "finite. Sample again, or train the model anew."
        )
