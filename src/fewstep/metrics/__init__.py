"""Figures of samples, all on plain tensors, in float64.

A metric that looks through features carries their name: `fd_digits`, never `fid`, which is a
number of one particular network and comparable only under it.
"""

from __future__ import annotations

from fewstep.metrics.cell import Reference, measure
from fewstep.metrics.digits_features import DigitsFeatures, digits_features
from fewstep.metrics.diversity import nearest_distance, within_class_variance
from fewstep.metrics.features import FeatureOutput, Features, extract
from fewstep.metrics.frechet import Moments, frechet_distance, moments
from fewstep.metrics.kernel import kernel_distance
from fewstep.metrics.manifold import precision_recall
from fewstep.metrics.paired import paired_rms
from fewstep.metrics.score import accuracy, class_score
from fewstep.metrics.vision import VisionFeatures, train_features, vision_features

__all__ = [
    "DigitsFeatures",
    "FeatureOutput",
    "Features",
    "Moments",
    "Reference",
    "VisionFeatures",
    "accuracy",
    "class_score",
    "digits_features",
    "extract",
    "frechet_distance",
    "kernel_distance",
    "measure",
    "moments",
    "nearest_distance",
    "paired_rms",
    "precision_recall",
    "train_features",
    "vision_features",
    "within_class_variance",
]
