"""Features from a folder of the transformers library: one's own, or a classifier trained by us.

folder/config.json, model.safetensors    the network, as transformers saves it
folder/preprocessor_config.json          size, mean and deviation of what it is shown
folder/features.json                     only of one trained here: name, data, accuracy
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.errors import FolderError, ShapeError
from fewstep.metrics.features import FeatureOutput

CARD = "features.json"
PREPROCESSING = "preprocessor_config.json"
NETWORK = "model.safetensors"
CLASSES = "classes"  # the task of a classifier of the data's own classes


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
        shown = self.show(x.to(self.device, torch.float32).expand(-1, channels, -1, -1))
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

    @property
    def device(self) -> torch.device:
        """Where the model computes; distances to every training image are computed there too."""
        found: torch.device = next(self._model.parameters()).device
        return found

    def show(self, x: Tensor) -> Tensor:
        """Return x (B, C, H, W) in [-1, 1] as the model takes it: its size, mean and deviation."""
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
    if not (folder / NETWORK).is_file():
        raise FolderError(
            f"{folder / NETWORK} is missing; features are read from safetensors alone. Save the "
            "model with transformers' save_pretrained, which writes it."
        )
    sha = digest_of(folder)
    card = _json(folder / CARD) if (folder / CARD).is_file() else {}
    if card and card.get("sha256") != sha:
        raise FolderError(
            f"{folder} must hold the weights that were trained, and their hash is another one: the "
            "folder was changed or is damaged. Train the features again."
        )
    if card:
        _check_card(card, folder / CARD)
    card = card or {"name": short_name(folder.resolve().name), "sha256": sha}
    from transformers import AutoModel, AutoModelForImageClassification

    classifier = any("ForImageClassification" in a for a in config.get("architectures") or ())
    kind = AutoModelForImageClassification if classifier else AutoModel
    no_progress_bars()
    try:
        model = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise FolderError(
            f"{folder} cannot be read as a vision model: {str(error).strip().splitlines()[0]}"
        ) from None
    if not hasattr(model.config, "num_channels"):
        raise FolderError(f"{folder} is no vision model: its config.json has no num_channels.")
    return VisionFeatures(model.to(device), shown, card)


def _pooled(out: Any) -> Tensor:
    pooled = getattr(out, "pooler_output", None)
    if pooled is None:
        # A vision transformer without a pooler: its first token represents the image.
        pooled = out.last_hidden_state[:, 0]
    assert isinstance(pooled, Tensor)
    return pooled


def _check_card(card: dict[str, Any], path: Path) -> None:
    """Raise FolderError unless the facts of a features.json have the types that are read."""
    name, accuracy, classes = (card.get(k) for k in ("name", "held_out_accuracy", "num_classes"))
    wrong = [
        key
        for key, right in (
            ("name", isinstance(name, str) and short_name(name) == name),
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


def no_progress_bars() -> None:
    """Let transformers show no progress bars of its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def short_name(name: str) -> str:
    """Return the letters, digits and dashes of a name, as metrics are called after it."""
    return re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-") or "features"


def digest_of(folder: Path) -> str:
    """Return the hash of the weights and the preprocessing of a folder."""
    digest = hashlib.sha256()
    for part in ("config.json", PREPROCESSING, NETWORK):
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
