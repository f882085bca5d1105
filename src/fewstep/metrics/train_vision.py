"""A classifier that is trained on images, for their features: a small residual network.

Its folder is like that of any vision model of the transformers library.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from fewstep.atomic import atomic_folder, write_json
from fewstep.core.cond import Cond
from fewstep.core.seed import derive, generator
from fewstep.errors import DataError, FolderError
from fewstep.metrics.vision import (
    CARD,
    CLASSES,
    PREPROCESSING,
    VisionFeatures,
    digest_of,
    no_progress_bars,
    short_name,
)

BATCH, LR, WEIGHT_DECAY, SMOOTHING = 128, 2e-3, 5e-2, 0.05
WIDTHS, DEPTHS = (32, 64, 128), (1, 1, 1)
ENLARGED = 4  # the stem of the network halves twice, so small images are shown enlarged by as much
SHOWN = 64  # but not beyond so many pixels
SHIFT = 1 / 8  # of the side: how far training moves an image each way


class LabelledImages(Protocol):
    """Numbered images with classes, as `fewstep.data` has them."""

    def __len__(self) -> int:
        """Return the number of images."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""

    def batch(self, index: Tensor) -> tuple[Tensor, Cond]:
        """Return the images (B, C, H, W) in [-1, 1] and classes (B,) numbered by index (B,)."""

    def content_hash(self) -> str:
        """Return what tells these images from others."""


def train_features(
    folder: Path,
    train: LabelledImages,
    held_out: LabelledImages | None,
    *,
    name: str,
    task: str = CLASSES,
    epochs: int = 8,
    flip: bool = True,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
) -> VisionFeatures:
    """Train a classifier on images, write it to a folder, whole, and return it as features.

    A residual network of 128 features, shown the images 4 times enlarged, or less where they
    would be larger than 64, with small shifts and (flip) mirror images. Bits depend on the number
    of threads; the file's hash tells.

    Args:
        folder: where it goes; must not exist.
        train: what it learns from.
        held_out: what its accuracy is measured on, which is stored with it; None leaves its
            accuracy unknown.
        name: letters, digits and dashes: metrics are called `fd_<name>`.
        task: what its classes are: the data's own "classes", or those of another task.
        epochs: through the training images.
        flip: whether mirror images are of the same class.
        seed: of weights, order and shifts.
        device: "cpu" or "cuda".
        progress: show a bar where stderr is a terminal.

    Raises:
        DataError: no training images; an empty set of held-out images; a name with other
            characters.
        FolderError: the folder exists, or the disk is full.
    """
    if held_out is not None and not len(held_out):
        raise DataError(
            "the accuracy of the features is measured on held-out images, got 0. Increase "
            "data.held_out to hold some out, for example 0.05."
        )
    if not len(train):
        raise DataError("a classifier needs at least 1 training image, got 0. Add images.")
    if short_name(name) != name:
        raise DataError(
            f"name must consist of letters, digits and dashes, got {name!r}. Use "
            f"{short_name(name)!r}."
        )
    if folder.exists() and any(folder.iterdir()):
        raise FolderError(f"{folder} is not empty. Give another folder, or remove it.")
    x, _ = _images(train, torch.arange(1))
    model = _network(x.shape, train.num_classes, seed).to(device)
    times = max(1, min(ENLARGED, SHOWN // max(x.shape[2:])))
    side = {"height": times * x.shape[2], "width": times * x.shape[3]}
    ones = [0.5] * x.shape[1]
    shown = {"size": side, "image_mean": ones, "image_std": ones, "resample": 2}
    card: dict[str, Any] = {"name": name, "sha256": "", "num_classes": train.num_classes}
    if task != CLASSES:
        card["task"] = task
    features = VisionFeatures(model, shown, card)
    _fit(model, features.show, train, epochs, flip, seed, device, progress)
    accuracy = None
    if held_out is not None:
        accuracy = _accuracy(VisionFeatures(model, shown, card | {"task": CLASSES}), held_out)
    card |= {
        "held_out_accuracy": accuracy,
        "held_out": 0 if held_out is None else len(held_out),
        "data_sha256": train.content_hash(),
        "epochs": epochs,
        "flip": flip,
        "seed": seed,
    }
    no_progress_bars()
    with atomic_folder(folder) as partial:
        model.save_pretrained(partial)  # type: ignore[operator]
        write_json(partial / PREPROCESSING, shown)
        card["sha256"] = digest_of(partial)
        write_json(partial / CARD, card)
    return VisionFeatures(model, shown, card)


def _network(shape: torch.Size, num_classes: int, seed: int) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_channels=shape[1],
        embedding_size=WIDTHS[0],
        hidden_sizes=list(WIDTHS),
        depths=list(DEPTHS),
        layer_type="basic",
        num_labels=num_classes,
    )
    with torch.random.fork_rng(devices=[]):
        # transformers initialises from the global generator; the fork leaves the caller's alone.
        torch.default_generator.manual_seed(derive(seed, "features"))
        model: nn.Module = ResNetForImageClassification(config)
    return model


def _fit(
    model: nn.Module,
    show: Callable[[Tensor], Tensor],
    train: LabelledImages,
    epochs: int,
    flip: bool,
    seed: int,
    device: str,
    progress: bool,
) -> None:
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    rng = generator("cpu", seed, "features order")
    drawn = [torch.randperm(len(train), generator=rng) for _ in range(epochs)]
    batches = [index for epoch in drawn for index in epoch.split(BATCH)]
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=len(batches) + 1)
    hidden = None if progress else True
    with torch.enable_grad(), tqdm(total=len(batches), desc="features", disable=hidden) as bar:
        for index in batches:
            x, labels = _images(train, index)
            shown = show(_moved(x, flip, rng).to(device))
            logits = model(pixel_values=shown).logits
            loss = F.cross_entropy(logits, labels.to(device), label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            bar.update()


def _moved(x: Tensor, flip: bool, rng: torch.Generator) -> Tensor:
    """Return x (B, C, H, W), each moved by up to SHIFT of its side, half of them mirrored."""
    reach = [min(max(1, round(SHIFT * side)), side - 1) for side in x.shape[2:]]
    padded = F.pad(x, (reach[1], reach[1], reach[0], reach[0]), mode="reflect")
    rows, columns = (
        torch.randint(2 * r + 1, (len(x), 1), generator=rng) + torch.arange(side)
        for r, side in zip(reach, x.shape[2:], strict=True)
    )
    if flip:
        mirrored = torch.rand(len(x), 1, generator=rng) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    example = torch.arange(len(x))[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[example, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def _accuracy(features: VisionFeatures, held_out: LabelledImages) -> float:
    right = 0
    for index in torch.arange(len(held_out)).split(500):
        x, labels = _images(held_out, index)
        logits = features(x).logits
        assert logits is not None
        right += int((logits.argmax(dim=1) == labels).sum())
    return right / len(held_out)


def _images(dataset: LabelledImages, index: Tensor) -> tuple[Tensor, Tensor]:
    x, labels = dataset.batch(index)
    if not isinstance(labels, Tensor):
        raise DataError("a classifier takes images with one class each; these have none.")
    return x, labels
