"""Images turned by quarter turns, with the turn as the class: a task for images without labels.

A classifier that tells the turns apart learns features of images that nobody has labelled, so that
captioned images have a Fréchet distance too. Source: Gidaris et al. 2018, arXiv:1803.07728.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.errors import DataError
from fewstep.metrics.train_vision import LabelledImages

TASK = "rotations"


class Rotations:
    """Every image of a data set in four turns (two where it is not square), one class per turn."""

    def __init__(self, images: LabelledImages) -> None:
        """Wrap a data set; its own conditions are ignored. Raises DataError where it is empty."""
        if not len(images):
            raise DataError("a data set of rotations needs at least 1 image, got 0. Add images.")
        self.images = images
        height, width = images.batch(torch.arange(1))[0].shape[2:]
        self.num_classes = 4 if height == width else 2

    def __len__(self) -> int:
        """Return the number of turned images."""
        return self.num_classes * len(self.images)

    def batch(self, index: Tensor) -> tuple[Tensor, Cond]:
        """Return the turned images (B, C, H, W) in [-1, 1] and their turns (B,)."""
        x, _ = self.images.batch(index // self.num_classes)
        turns = index % self.num_classes
        quarter = 4 // self.num_classes
        turned = [
            torch.rot90(image, quarter * int(k), (1, 2)) for image, k in zip(x, turns, strict=True)
        ]
        return torch.stack(turned), turns

    def content_hash(self) -> str:
        """Return the hash of the images that are turned."""
        return self.images.content_hash()
