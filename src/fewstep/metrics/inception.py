"""The Inception network of the published FID and inception score, from a weights file.

The network of 2015 that was released with TensorFlow, as its weights were carried over to torch
(`pt_inception-2015-12-05-*.pth`): 1,008 classes, average pools that leave out the border, one
maximum pool in the last block, and images resized to 299 as TensorFlow 1 did. Only distances in
these features are called FID.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.errors import FolderError, ShapeError
from fewstep.metrics.features import FeatureOutput
from fewstep.pixels import to_bytes

SIDE, FEATURES, CLASSES = 299, 2048, 1008

Unit: TypeAlias = "tuple[str, int, tuple[int, int]] | tuple[str, int, tuple[int, int], int]"
Branch: TypeAlias = "list[str | Unit | list[Unit]]"
ONE, THREE, FIVE, ROW, COLUMN = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)


class Convolution(nn.Module):
    """Convolution, batch norm with its stored statistics, ReLU."""

    def __init__(
        self, inside: int, out: int, kernel: tuple[int, int], stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        half = (kernel[0] // 2, kernel[1] // 2)
        padding = half if padded and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(inside, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out, H', W')."""
        out: Tensor = self.bn(self.conv(x)).relu()
        return out


class Mixed(nn.Module):
    """Branches side by side, joined by channels; a list inside a branch forks it once more."""

    def __init__(self, inside: int, branches: list[Branch]) -> None:
        super().__init__()
        self.branches, self.width = branches, 0
        for branch in branches:
            width = inside
            for item in branch:
                if isinstance(item, str):
                    continue
                fork = item if isinstance(item, list) else [item]
                for name, out, *more in fork:
                    self.add_module(name, Convolution(width, out, *more))
                width = sum(unit[1] for unit in fork)
            self.width += width

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, H', W')."""
        out = []
        for branch in self.branches:
            h = x
            for item in branch:
                if isinstance(item, str):
                    h = _pool(h, item)
                else:
                    fork = item if isinstance(item, list) else [item]
                    h = torch.cat([self.get_submodule(unit[0])(h) for unit in fork], dim=1)
            out.append(h)
        return torch.cat(out, dim=1)


def _pool(x: Tensor, kind: str) -> Tensor:
    if kind == "average":
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return F.max_pool2d(x, 3, 1, 1) if kind == "maximum" else F.max_pool2d(x, 3, 2)


def _a(pool: int) -> list[Branch]:
    double: Branch = [("branch3x3dbl_1", 64, ONE)]
    double += [(f"branch3x3dbl_{k}", 96, THREE) for k in (2, 3)]
    return [
        [("branch1x1", 64, ONE)],
        [("branch5x5_1", 48, ONE), ("branch5x5_2", 64, FIVE)],
        double,
        ["average", ("branch_pool", pool, ONE)],
    ]


def _b() -> list[Branch]:
    return [
        [("branch3x3", 384, THREE, 2)],
        [
            ("branch3x3dbl_1", 64, ONE),
            ("branch3x3dbl_2", 96, THREE),
            ("branch3x3dbl_3", 96, THREE, 2),
        ],
        ["halve"],
    ]


def _c(c: int) -> list[Branch]:
    long = [ONE, COLUMN, ROW, COLUMN, ROW]
    return [
        [("branch1x1", 192, ONE)],
        [("branch7x7_1", c, ONE), ("branch7x7_2", c, ROW), ("branch7x7_3", 192, COLUMN)],
        [(f"branch7x7dbl_{k + 1}", c if k < 4 else 192, kernel) for k, kernel in enumerate(long)],
        ["average", ("branch_pool", 192, ONE)],
    ]


def _d() -> list[Branch]:
    deep: Branch = [
        (f"branch7x7x3_{k + 1}", 192, kernel) for k, kernel in enumerate((ONE, ROW, COLUMN))
    ]
    return [
        [("branch3x3_1", 192, ONE), ("branch3x3_2", 320, THREE, 2)],
        [*deep, ("branch7x7x3_4", 192, THREE, 2)],
        ["halve"],
    ]


def _e(pool: str) -> list[Branch]:
    def fork(name: str) -> list[Unit]:
        return [(f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))]

    return [
        [("branch1x1", 320, ONE)],
        [("branch3x3_1", 384, ONE), fork("branch3x3_2")],
        [("branch3x3dbl_1", 448, ONE), ("branch3x3dbl_2", 384, THREE), fork("branch3x3dbl_3")],
        [pool, ("branch_pool", 192, ONE)],
    ]


class Inception(nn.Module):
    """The network: bytes (B, 3, H, W) as floats to pooled features (B, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, THREE, 2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, THREE, padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, THREE)
        self.Conv2d_3b_1x1 = Convolution(64, 80, ONE)
        self.Conv2d_4a_3x3 = Convolution(80, 192, THREE, padded=False)
        blocks = {f"5{n}": _a(pool) for n, pool in zip("bcd", (32, 64, 64), strict=True)}
        blocks["6a"] = _b()
        blocks |= {f"6{n}": _c(c) for n, c in zip("bcde", (128, 160, 160, 192), strict=True)}
        blocks |= {"7a": _d(), "7b": _e("average"), "7c": _e("maximum")}
        width = 192
        self.mixed = [f"Mixed_{name}" for name in blocks]
        for name, branches in zip(self.mixed, blocks.values(), strict=True):
            block = Mixed(width, branches)
            width = block.width
            self.add_module(name, block)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features of pixels (B, 3, H, W), 0 to 255."""
        x = (resize(pixels, SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_pool(x, "halve")))
        x = _pool(x, "halve")
        for name in self.mixed:
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))


def resize(x: Tensor, side: int) -> Tensor:
    """Return x (B, C, H, W) at (side, side), bilinear with corners at corners of pixel 0.

    TensorFlow 1's rule: pixel i of the result stands at i * H / side of the source, and nothing
    is smoothed where images shrink.
    """
    for axis in (2, 3):
        size = x.shape[axis]
        at = torch.arange(side, device=x.device, dtype=torch.float32) * (size / side)
        low = at.floor().long().clamp(max=size - 1)
        high = (low + 1).clamp(max=size - 1)
        shape = [1, 1, 1, 1]
        shape[axis] = side
        part = (at - low).view(shape).to(x)
        first, second = x.index_select(axis, low), x.index_select(axis, high)
        x = first + (second - first) * part
    return x


class InceptionFeatures:
    """The published features. Metrics through them are called `fid` and `kid`.

    Attributes:
        name: "inception".
        sha256: of the weights file.
        num_classes: None: its classes are those of its own training.
    """

    name = "inception"
    published = True
    resizing = "to 299x299 by TensorFlow 1's bilinear rule"
    num_classes: int | None = None

    def __init__(self, path: Path | str, device: str = "cpu") -> None:
        """Read a weights file, .pth (tensors alone, no code is run) or .safetensors.

        Raises FolderError: no such file, or weights with other keys or shapes.
        """
        path = Path(path)
        weights = _read(path)
        model = Inception()
        _check(path, weights, model.state_dict())
        model.load_state_dict(weights, strict=False)
        self._model = model.to(device).eval().requires_grad_(False)
        self._device = device
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def __call__(self, x: Tensor) -> FeatureOutput:
        """Return features (B, 2048) and logits (B, 1008), without bias as published, on the CPU.

        x: (B, 1 or 3, H, W) in [-1, 1], taken as bytes. Raises ShapeError for another shape.
        """
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ShapeError(f"images have shape {tuple(x.shape)}; Inception takes (B, 3, H, W).")
        pixels = to_bytes(x.to(self._device)).float()
        with torch.no_grad():
            features = self._model(pixels.expand(-1, 3, -1, -1))
            logits = features @ self._model.fc.weight.T
        return FeatureOutput(features.cpu(), logits.cpu())


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FolderError(f"{path} is missing; name a weights file of the published Inception.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise FolderError(f"{path} cannot be read as weights ({reason[:120]}).") from None
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise FolderError(f"{path} holds no state dict of tensors; it is another kind of file.")
    return loaded


def _check(path: Path, given: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    # Files differ in whether they carry the batch norms' counters, which nothing uses.
    keys = {k for k in wanted if not k.endswith("num_batches_tracked")}
    found = {k for k in given if not k.endswith("num_batches_tracked")}
    odd = sorted(keys ^ found)
    if odd:
        kind = "lacks" if odd[0] in keys else "has besides"
        raise FolderError(
            f"{path} is not the published Inception: it {kind} {odd[0]!r}, and {len(odd) - 1} more "
            "keys differ. FID is defined by that network alone."
        )
    for key in sorted(keys):
        if given[key].shape != wanted[key].shape:
            raise FolderError(
                f"{path} is not the published Inception: {key} has shape "
                f"{tuple(given[key].shape)}, not {tuple(wanted[key].shape)}."
            )
