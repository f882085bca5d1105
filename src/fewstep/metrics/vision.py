"""Features from a folder of the transformers library: one's own, or a classifier trained here.

    folder/config.json, model.safetensors    the network, as transformers saves it
    folder/preprocessor_config.json          size, mean and deviation of what it is shown
    folder/features.json                     only of one trained here: name, data, accuracy

A classifier trained here is a small residual network of that library, so its folder is like any
other.
"""

from __future__ import annotations

import hashlib
import json
import re
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
from fewstep.errors import DataError, FolderError, ShapeError
from fewstep.metrics.features import FeatureOutput

CARD = "features.json"
PREPROCESSING = "preprocessor_config.json"
WEIGHTS = "model.safetensors"
BATCH, LR, WEIGHT_DECAY, SMOOTHING = 128, 2e-3, 5e-2, 0.05
WIDTHS, DEPTHS = (32, 64, 128), (1, 1, 1)
ENLARGED = 4  # the stem of the network halves twice, so small images are shown enlarged by as much
SHOWN = 64  # but not beyond so many pixels
SHIFT = 1 / 8  # of the side: how far training moves an image each way
CLASSES = "classes"  # the task of a classifier of the data's own classes


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


class VisionFeatures:
    """The pooled output of a transformers vision model, and its logits where it classifies.

    Attributes:
        name: what the metrics are called after.
        sha256: of the weights and the preprocessing.
        num_classes: of the data, where it was trained on that here; else None.
        held_out_accuracy: share of held-out images that it classifies correctly; None where it
            was not trained here, or there were no held-out images.
        held_out: the number of those images.
        chance: the accuracy of guessing, where it was trained here.
        data_sha256: hash of the images that it was trained on here.
        task: what it was trained to tell apart here: "classes", or another task, whose logits say
            nothing about the data's classes and are not returned.
    """

    def __init__(self, model: Any, shown: dict[str, Any], card: dict[str, Any]) -> None:
        """Wrap a loaded model; `vision_features` is the way to one."""
        self._model = model.eval().requires_grad_(False)
        self._size, self._resample = _size(shown), shown.get("resample", 2)
        self._mean = torch.tensor(shown.get("image_mean", [0.5])).view(1, -1, 1, 1)
        self._std = torch.tensor(shown.get("image_std", [0.5])).view(1, -1, 1, 1)
        self.name: str = card["name"]
        self.sha256: str = card["sha256"]
        self.task: str = card.get("task", CLASSES)
        classes: int | None = card.get("num_classes")
        self.num_classes = classes if self.task == CLASSES else None
        self.chance = None if not classes else 1 / classes
        self.held_out_accuracy: float | None = card.get("held_out_accuracy")
        self.held_out: int | None = card.get("held_out")
        self.data_sha256: str | None = card.get("data_sha256")

    def __call__(self, x: Tensor) -> FeatureOutput:
        """Return the features and logits of x (B, 1 or 3, H, W) in [-1, 1], on the CPU.

        Images are resized as a whole to the model's size (bilinear or bicubic as its folder says,
        smoothed where they shrink) and shown with its mean and deviation. Raises ShapeError where
        x is no batch of images that it can see.
        """
        channels = int(self._model.config.num_channels)
        if x.ndim != 4 or x.shape[1] not in (1, channels):
            raise ShapeError(
                f"images have shape {tuple(x.shape)}; the features {self.name!r} take "
                f"(B, {channels}, H, W). Use features that were made for such images."
            )
        device = next(self._model.parameters()).device
        shown = self._show(x.to(device, torch.float32).expand(-1, channels, -1, -1))
        pooled: list[Tensor] = []
        base = self._model.base_model
        hook = base.register_forward_hook(lambda _m, _i, out: pooled.append(_pooled(out)))
        try:
            with torch.no_grad():
                out = self._model(pixel_values=shown)
        finally:
            hook.remove()
        logits = getattr(out, "logits", None) if self.task == CLASSES else None
        features = (pooled[0] if pooled else _pooled(out)).flatten(1)
        return FeatureOutput(features.cpu(), None if logits is None else logits.cpu())

    def _show(self, x: Tensor) -> Tensor:
        if self._size is not None and tuple(x.shape[2:]) != self._size:
            mode = "bicubic" if self._resample == 3 else "bilinear"
            x = F.interpolate(x, self._size, mode=mode, antialias=True, align_corners=False)
        unit = ((x + 1) / 2).clamp(0, 1)
        shown: Tensor = (unit - self._mean.to(x)) / self._std.to(x)
        return shown


def vision_features(folder: Path | str, device: str = "cpu") -> VisionFeatures:
    """Return the features of a folder; nothing is fetched.

    Raises FolderError: it is no transformers vision model, has no safetensors, or was altered
    since it was trained here.
    """
    folder = Path(folder)
    config, shown = _json(folder / "config.json"), _json(folder / PREPROCESSING)
    if not (folder / WEIGHTS).is_file():
        raise FolderError(
            f"{folder / WEIGHTS} is missing; features are read from safetensors alone. Save the "
            "model with transformers' save_pretrained, which writes it."
        )
    sha = _digest(folder)
    card = _json(folder / CARD) if (folder / CARD).is_file() else {}
    if card and card.get("sha256") != sha:
        raise FolderError(
            f"{folder} must hold the weights that were trained, and their hash is another one: the "
            "folder was changed or is damaged. Train the features again."
        )
    if card:
        _check_card(card, folder / CARD)
    card = card or {"name": _short(folder.resolve().name), "sha256": sha}
    from transformers import AutoModel, AutoModelForImageClassification

    classifier = any("ForImageClassification" in a for a in config.get("architectures") or ())
    kind = AutoModelForImageClassification if classifier else AutoModel
    _quiet()
    try:
        model = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise FolderError(
            f"{folder} cannot be read as a vision model: {str(error).strip().splitlines()[0]}"
        ) from None
    if not hasattr(model.config, "num_channels"):
        raise FolderError(f"{folder} is no vision model: its config.json has no num_channels.")
    return VisionFeatures(model.to(device), shown, card)


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
    if _short(name) != name:
        raise DataError(
            f"name must consist of letters, digits and dashes, got {name!r}. Use {_short(name)!r}."
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
    _fit(model, features._show, train, epochs, flip, seed, device, progress)
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
    _quiet()
    with atomic_folder(folder) as partial:
        model.save_pretrained(partial)  # type: ignore[operator]
        write_json(partial / PREPROCESSING, shown)
        card["sha256"] = _digest(partial)
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


def _images(images: LabelledImages, index: Tensor) -> tuple[Tensor, Tensor]:
    x, labels = images.batch(index)
    if not isinstance(labels, Tensor):
        raise DataError("a classifier takes images with one class each; these have none.")
    return x, labels


def _pooled(out: Any) -> Tensor:
    pooled = getattr(out, "pooler_output", None)
    if pooled is None:
        # A vision transformer without a pooler: its first token stands for the image.
        pooled = out.last_hidden_state[:, 0]
    assert isinstance(pooled, Tensor)
    return pooled


def _check_card(card: dict[str, Any], path: Path) -> None:
    """Raise FolderError unless the facts of a features.json have the types that are read."""
    name, accuracy, classes = (card.get(k) for k in ("name", "held_out_accuracy", "num_classes"))
    wrong = [
        key
        for key, right in (
            ("name", isinstance(name, str) and _short(name) == name),
            ("held_out_accuracy", accuracy is None or isinstance(accuracy, float | int)),
            ("num_classes", classes is None or (isinstance(classes, int) and classes > 0)),
        )
        if not right
    ]
    if wrong:
        raise FolderError(
            f"{path}: {wrong[0]} must be what `fewstep features train` writes, got "
            f"{card.get(wrong[0])!r}. Train the features again."
        )


def _size(shown: dict[str, Any]) -> tuple[int, int] | None:
    size = shown.get("crop_size") or shown.get("size")
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and "height" in size:
        return int(size["height"]), int(size["width"])
    if isinstance(size, dict) and "shortest_edge" in size:
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    return None


def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


def _short(name: str) -> str:
    return re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-") or "features"


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for part in ("config.json", PREPROCESSING, WEIGHTS):
        digest.update((folder / part).read_bytes())
    return digest.hexdigest()


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FolderError(
            f"{path} is missing; features are a folder that transformers' save_pretrained wrote, "
            "of model and image processor."
        ) from None
    except (OSError, ValueError) as error:
        raise FolderError(f"{path} cannot be read: {error}.") from None
    if not isinstance(data, dict):
        raise FolderError(f"{path} is not a JSON object. Copy the folder again.")
    return data
