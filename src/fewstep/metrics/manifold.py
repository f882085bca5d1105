"""Precision and recall: the share of samples near real images, and of real images near samples."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.errors import DataError, ShapeError


def precision_recall(
    samples: Tensor, real: Tensor, *, neighbours: int = 3, chunk: int = 1024
) -> tuple[float, float]:
    """Return the improved precision and recall of samples (M, D) against real (N, D), 0 to 1 each.

    A cloud covers a point that is no further from one of its members than that member is from
    its third nearest neighbour. Precision is the share of samples that the real images cover;
    recall the share of real images that the samples cover. Both depend on M and N: compare equal
    counts.

    Args:
        samples: features (M, D); distances are taken in float64 on their device.
        real: features (N, D).
        neighbours: which neighbour gives the radius, the member itself not counted.
        chunk: rows at a time. The values do not depend on it.

    Raises:
        ShapeError: not (M, D) and (N, D).
        DataError: not more samples than neighbours, in either.

    Source: Kynkaanniemi et al. 2019, arXiv:1904.06991, section 2.
    """
    if samples.ndim != 2 or real.ndim != 2 or samples.shape[1] != real.shape[1]:
        raise ShapeError(
            f"features have shapes {tuple(samples.shape)} and {tuple(real.shape)}; precision takes "
            "(M, D) and (N, D). Give features of one extractor."
        )
    if min(len(samples), len(real)) <= neighbours:
        raise DataError(
            f"{len(samples)} samples and {len(real)} real images; with {neighbours} neighbours "
            f"both must be more than {neighbours}. Give more."
        )
    samples, real = (x.detach().to(samples.device, torch.float64) for x in (samples, real))
    return (
        _covered(samples, real, _radii(real, neighbours, chunk), chunk),
        _covered(real, samples, _radii(samples, neighbours, chunk), chunk),
    )


def _radii(x: Tensor, neighbours: int, chunk: int) -> Tensor:
    # The nearest is the member itself, at distance 0.
    found = [torch.cdist(part, x).kthvalue(neighbours + 1, dim=1).values for part in x.split(chunk)]
    return torch.cat(found)


def _covered(points: Tensor, cloud: Tensor, radii: Tensor, chunk: int) -> float:
    inside = [(torch.cdist(part, cloud) <= radii).any(dim=1) for part in points.split(chunk)]
    return float(torch.cat(inside).double().mean())
