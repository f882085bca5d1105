"""The features of an evaluation: those that are given, or ones that it trains on the images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.data import DATASETS
from fewstep.errors import FolderError
from fewstep.metrics import Features, digits_features, open_features, train_features
from fewstep.metrics.rotations import TASK, Rotations
from fewstep.metrics.train_vision import LabelledImages
from fewstep.metrics.vision import CLASSES, VisionFeatures, vision_features

if TYPE_CHECKING:
    from fewstep.measure.evaluate import Evaluation

OWN = "own"  # name of a classifier of the data's own classes


def features_of(evaluation: Evaluation) -> Features:
    """Return the features of an evaluation, trained now where none are given or kept.

    Images with classes get a classifier of them. Images without, such as captioned ones, get one
    that tells how far an image was turned. Raises FolderError as `open_features` does.
    """
    if evaluation.features_path is not None:
        return open_features(evaluation.features_path, evaluation.device)
    if evaluation.data.name in DATASETS:
        return digits_features(evaluation.folder, evaluation.train, evaluation.held_out)
    kept, folder = kept_features(evaluation)
    return _trained(evaluation, folder) if kept is None else kept


def kept_features(evaluation: Evaluation) -> tuple[VisionFeatures | None, Path]:
    """Return the features that were trained here on these very images, and their folder.

    Where there are none, None and the folder to train them in: features of other images that are
    kept there stay. Raises FolderError for a damaged folder.
    """
    task = CLASSES if evaluation.labels is not None else TASK
    data = evaluation.dataset.content_hash()
    plain = evaluation.folder / "features"
    folders = (plain, plain.with_name(f"features-{data[:8]}-{task}"))
    for folder in folders:
        if not folder.is_dir():
            return None, folder
        try:
            found = vision_features(folder, evaluation.device)
        except FolderError as error:
            raise FolderError(f"{error} Or remove {folder}: it is made again.") from None
        if (found.data_sha256, found.task) == (data, task):
            return found, folder
    return None, folders[-1]


def _trained(evaluation: Evaluation, folder: Path) -> VisionFeatures:
    train: LabelledImages = evaluation.dataset
    held_out: LabelledImages | None = evaluation.held_out_dataset
    if evaluation.labels is not None:
        name, task, epochs, flip = OWN, CLASSES, 8, evaluation.data.flip
        evaluation.say(
            "features: training a classifier on the images; --features (evaluate.features in a "
            "recipe) takes features of your own"
        )
    else:
        # A mirror image of a turned image is one of another turn.
        name, task, epochs, flip = TASK, TASK, 2, False
        train = Rotations(train)
        held_out = None if held_out is None else Rotations(held_out)
        evaluation.say(
            "features: the images have no classes, so a classifier is trained to tell how far an "
            "image was turned; --features (evaluate.features in a recipe) takes better ones"
        )
    found = train_features(
        folder,
        train,
        held_out,
        name=name,
        task=task,
        epochs=epochs,
        flip=flip,
        device=evaluation.device,
    )
    accuracy = found.held_out_accuracy
    if accuracy is None:
        evaluation.say("features: the accuracy is unknown, since no images are held out")
    else:
        evaluation.say(f"features: accuracy {accuracy:.3f} on the held-out images")
    return found
