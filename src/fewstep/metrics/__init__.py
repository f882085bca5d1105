"""Metrics of samples, on plain tensors, in float64.

A metric that is computed from features is named after them: `fd_digits`, never `fid`, which is the
distance in the features of one particular network.
"""

from __future__ import annotations

from pathlib import Path

from fewstep.metrics.cell import (
    Measured,
    Measuring,
    check_finite_images,
    measure,
    measure_all,
    no_figures,
)
from fewstep.metrics.digits_features import DigitsFeatures, digits_features
from fewstep.metrics.diversity import nearest_distance, within_class_variance
from fewstep.metrics.features import (
    FD_TO_TEACHER,
    FeatureOutput,
    Features,
    distance_key,
    distance_names,
    extract,
)
from fewstep.metrics.figures import RMS, Figures
from fewstep.metrics.frechet import Moments, RunningMoments, frechet_distance, moments
from fewstep.metrics.inception import InceptionFeatures
from fewstep.metrics.kernel import kernel_distance
from fewstep.metrics.manifold import precision_recall
from fewstep.metrics.noise import noise_figures, psnr
from fewstep.metrics.paired import paired_rms
from fewstep.metrics.reference import Reference
from fewstep.metrics.rows import Rows
from fewstep.metrics.score import accuracy, class_score
from fewstep.metrics.scripted import ScriptedInception, is_scripted
from fewstep.metrics.train_vision import train_features
from fewstep.metrics.vision import VisionFeatures, vision_features


def open_features(path: Path, device: str = "cpu") -> Features:
    """Return a transformers vision folder's features, or the published Inception's from a file.

    Raises FolderError as `vision_features` and `InceptionFeatures` do.
    """
    if not path.is_file():
        return vision_features(path, device)
    kind = ScriptedInception if is_scripted(path) else InceptionFeatures
    return kind(path, device)


__all__ = [
    "FD_TO_TEACHER",
    "RMS",
    "DigitsFeatures",
    "FeatureOutput",
    "Features",
    "Figures",
    "InceptionFeatures",
    "Measured",
    "Measuring",
    "Moments",
    "Reference",
    "Rows",
    "RunningMoments",
    "ScriptedInception",
    "VisionFeatures",
    "accuracy",
    "check_finite_images",
    "class_score",
    "digits_features",
    "distance_key",
    "distance_names",
    "extract",
    "frechet_distance",
    "kernel_distance",
    "measure",
    "measure_all",
    "moments",
    "nearest_distance",
    "no_figures",
    "noise_figures",
    "open_features",
    "paired_rms",
    "precision_recall",
    "psnr",
    "train_features",
    "vision_features",
    "within_class_variance",
]
