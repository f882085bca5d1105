"""The Fréchet distance between two clouds of features, seen as Gaussians."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewstep.errors import DataError, NonFiniteError, ShapeError


@dataclass(frozen=True)
class Moments:
    """Mean (D,), unbiased covariance (D, D), both float64 on the CPU, of `count` samples."""

    mean: Tensor
    cov: Tensor
    count: int

    @cached_property
    def factor(self) -> Tensor:
        """F (D, D) with F F^T = cov; kept, since one reference meets many samples."""
        values, vectors = torch.linalg.eigh(self.cov)
        # Below rounding an eigenvalue is noise of either sign, and its root would not be small.
        noise = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
        factor: Tensor = vectors * torch.where(values > noise, values, 0.0).sqrt()
        return factor


class RunningMoments:
    """The moments of features that come batch by batch, in float64.

    Batches are merged by their means and scatters, so that nothing cancels and the memory does not
    grow with the number of samples. Source: Chan et al. 1983, American Statistician 37, 242-247.

    Attributes:
        count: samples so far.
        bad: how many of them have features that are infinite or not a number.
    """

    def __init__(self) -> None:
        self.count = self.bad = 0
        self._mean = self._scatter = torch.zeros((), dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Add a batch of features (B, D). Raises ShapeError where it is not that."""
        if features.ndim != 2:
            raise ShapeError(
                f"features have shape {tuple(features.shape)}; a Fréchet distance takes (B, D). "
                "Flatten each sample's features to one row."
            )
        if not len(features):
            return
        rows = features.detach().to("cpu", torch.float64)
        self.bad += int((~rows.isfinite()).any(dim=1).sum())
        before, total = self.count, self.count + len(rows)
        mean = rows.mean(dim=0)
        rows = rows - mean
        shift = mean - self._mean
        self._scatter = self._scatter + rows.T @ rows
        self._scatter += torch.outer(shift, shift) * (before * len(rows) / total)
        self._mean = self._mean + shift * (len(rows) / total)
        self.count = total

    def moments(self) -> Moments:
        """Return the moments. Raises DataError and NonFiniteError as `moments` does."""
        _check_count(self.count)
        if self.bad:
            raise NonFiniteError(
                f"{self.bad} of {self.count} samples have features that are infinite or not a "
                "number; all must be finite. Look at the samples first."
            )
        return Moments(self._mean, self._scatter / (self.count - 1), self.count)


def moments(features: Tensor) -> Moments:
    """Return the moments of features (B, D), computed in float64.

    Raises:
        ShapeError: features is not (B, D).
        DataError: fewer than 2 samples, which have no covariance.
        NonFiniteError: a feature is infinite or not a number.
    """
    running = RunningMoments()
    running.add(features)
    return running.moments()


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), at least 0.

    The trace of the square root is the sum of the singular values of F_a^T F_b with C = F F^T
    (F from the symmetric eigen-decomposition): no matrix square root, and covariances that are
    singular, as those of fewer samples than features are, cost no accuracy. It has the square of
    the features' unit and is biased upward for few samples: compare equal sample counts.

    Raises:
        ShapeError: a and b are of features of different dimensions.
        DataError: fewer than 2 samples in either.

    Source: Dowson & Landau 1982, Journal of Multivariate Analysis 12, 450-455.
    """
    if a.mean.shape != b.mean.shape:
        raise ShapeError(
            f"features of {len(a.mean)} and of {len(b.mean)} dimensions; both must come from the "
            "same features. Compute the moments again with one feature module."
        )
    _check_count(min(a.count, b.count))
    shift = (a.mean - b.mean).square().sum()
    root = torch.linalg.svdvals(a.factor.T @ b.factor).sum()
    return max(0.0, float(shift + a.cov.trace() + b.cov.trace() - 2 * root))


def _check_count(count: int) -> None:
    if count < 2:
        raise DataError(
            f"a Fréchet distance of {count} sample{'s' if count != 1 else ''}; it takes at least "
            "2, and hundreds to mean anything. Draw more samples."
        )
