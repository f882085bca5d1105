"""The features for digits: a small classifier, trained on the training images and kept in a file.

The absolute size of a distance depends on the features, so distances are compared only within
one file; `sha256` says which.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from fewstep.atomic import atomic_write
from fewstep.core.seed import generator
from fewstep.errors import FolderError, ShapeError
from fewstep.metrics.features import FeatureOutput, extract
from fewstep.metrics.score import accuracy

FILE = "features-digits.safetensors"
KIND = "fewstep digits features"
VERSION = "1"
WIDTH = 64
SHAPES: dict[str, tuple[int, ...]] = {
    "conv1.weight": (32, 1, 3, 3),
    "conv1.bias": (32,),
    "conv2.weight": (48, 32, 3, 3),
    "conv2.bias": (48,),
    "hidden.weight": (WIDTH, 48 * 4 * 4),
    "hidden.bias": (WIDTH,),
    "classes.weight": (10, WIDTH),
    "classes.bias": (10,),
}
EPOCHS, BATCH, LR, WEIGHT_DECAY = 40, 128, 2e-3, 1e-2
SMOOTHING = 0.05  # without it the features grow for as long as one trains, and so do distances
JITTER = 0.1

Split = tuple[Tensor, Tensor]


class DigitsFeatures:
    """Two convolutions and two linear layers; the features are the 64 units before the last.

    Attributes:
        name: "digits".
        held_out_accuracy: share of the held-out images it classifies rightly.
        sha256: of the weights, in hex; distances compare only under one.
    """

    name = "digits"
    num_classes: int | None = 10

    def __init__(self, weights: dict[str, Tensor], held_out_accuracy: float) -> None:
        """Wrap weights of the shapes SHAPES, float32."""
        self._weights = weights
        self.held_out_accuracy = held_out_accuracy
        self.sha256 = _hash(*(weights[k] for k in SHAPES))

    def __call__(self, x: Tensor) -> FeatureOutput:
        """Return the features (B, 64) and logits (B, 10) of x (B, 1, 8, 8) in [-1, 1].

        Computed on the CPU in float32. Raises ShapeError for another shape.
        """
        if x.shape[1:] != (1, 8, 8):
            raise ShapeError(
                f"images have shape {tuple(x.shape)}; the digit features take (B, 1, 8, 8). "
                "Measure other data with features of its own."
            )
        return FeatureOutput(*_forward(self._weights, x.to("cpu", torch.float32)))


def digits_features(
    folder: Path, train: Split, held_out: Split, *, seed: int = 0
) -> DigitsFeatures:
    """Return the features kept in folder / FILE, trained now (about 3 s) where there are none.

    Args:
        folder: where the file is, or will be: whole or not at all.
        train: x (N, 1, 8, 8) in [-1, 1] and class ids (N,), which it is trained on.
        held_out: the same, to measure its accuracy with and for nothing else.
        seed: of the weights at the start, the order and the jitter.

    Raises:
        FolderError: the file is cut short, damaged, not such a file, or of another seed, version
            or data.
    """
    path = folder / FILE
    expected = {
        "kind": KIND,
        "version": VERSION,
        "seed": str(seed),
        "data_sha256": _hash(*train, *held_out),
    }
    if path.exists():
        return _load(path, expected)
    features = DigitsFeatures(_train(*train, seed), math.nan)
    logits = extract(features, held_out[0]).logits
    assert logits is not None
    features.held_out_accuracy = accuracy(logits, held_out[1])
    metadata = {
        **expected,
        "held_out_accuracy": repr(features.held_out_accuracy),
        "weights_sha256": features.sha256,
    }
    atomic_write(path, save(features._weights, metadata=metadata))
    return features


def _load(path: Path, expected: dict[str, str]) -> DigitsFeatures:
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            weights: dict[str, Any] = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FolderError(
            f"{path} cannot be read: {error}. It must be a whole file of digit features; remove "
            "it, and it is trained again."
        ) from None
    given = {k: metadata.get(k, "nothing") for k in expected}
    differs = [k for k in expected if given[k] != expected[k]]
    if differs:
        raise FolderError(
            f"{path} has {differs[0]} = {given[differs[0]]}; here it must be "
            f"{expected[differs[0]]}. Give another folder, or remove the file to train it again."
        )
    try:
        features = DigitsFeatures(weights, float(metadata["held_out_accuracy"]))
        whole = features.sha256 == metadata["weights_sha256"]
    except (KeyError, ValueError):
        whole = False
    if not whole:
        raise FolderError(
            f"{path} is damaged: its weights are not those that were written. Remove it, and it "
            "is trained again."
        )
    return features


def _forward(p: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    h = F.conv2d(x, p["conv1.weight"], p["conv1.bias"], padding=1).relu()
    h = F.conv2d(h, p["conv2.weight"], p["conv2.bias"], stride=2, padding=1).relu()
    h = F.linear(h.flatten(1), p["hidden.weight"], p["hidden.bias"]).relu()
    return h, F.linear(h, p["classes.weight"], p["classes.bias"])


def _train(x: Tensor, labels: Tensor, seed: int) -> dict[str, Tensor]:
    rng = generator("cpu", seed, "digits features")
    weights = {name: _initial(shape, rng).requires_grad_() for name, shape in SHAPES.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=LR, weight_decay=WEIGHT_DECAY)
    updates = EPOCHS * math.ceil(len(x) / BATCH)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, updates)
    with _one_thread(), torch.enable_grad():
        for _ in range(EPOCHS):
            for index in torch.randperm(len(x), generator=rng).split(BATCH):
                logits = _forward(weights, _jitter(x[index], rng))[1]
                loss = F.cross_entropy(logits, labels[index], label_smoothing=SMOOTHING)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                decay.step()
    return {name: weight.detach() for name, weight in weights.items()}


def _initial(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return torch.zeros(shape)
    return torch.randn(shape, generator=rng) * math.sqrt(2 / math.prod(shape[1:]))


def _jitter(x: Tensor, rng: torch.Generator) -> Tensor:
    """Return x (B, 1, 8, 8), about half of it moved by up to a pixel each way, with some noise."""
    corner = torch.randint(3, (len(x), 2), generator=rng)
    corner[torch.rand(len(x), generator=rng) < 0.5] = 1
    rows, columns = (corner[:, k, None] + torch.arange(8) for k in (0, 1))
    example = torch.arange(len(x))[:, None, None]
    padded = F.pad(x[:, 0], (1, 1, 1, 1), value=-1.0)
    moved = padded[example, rows[:, :, None], columns[:, None, :]].unsqueeze(1)
    return moved + JITTER * torch.randn(x.shape, generator=rng)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Train on one thread: the same bits wherever there are more, and faster at this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _hash(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
