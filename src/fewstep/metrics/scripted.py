"""The published Inception as a TorchScript file, the form that StyleGAN uses.

Such a file is a program: load only one that you trust.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.atomic import sha256
from fewstep.errors import FolderError, ShapeError
from fewstep.metrics.features import FeatureOutput
from fewstep.pixels import to_bytes

RETURN_FEATURES = "return_features"  # the argument that asks for features in place of classes


def is_scripted(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())


class ScriptedInception:
    """The features of a TorchScript file. Metrics through them are called `fid` and `kid`.

    Attributes:
        name: "inception".
        sha256: of the file.
        num_classes: None: there is no classifier of the data's classes.
    """

    name = "inception"
    published = True
    num_classes: int | None = None

    def __init__(self, path: Path, device: str = "cpu") -> None:
        """Load a file. Raises FolderError where it cannot be loaded."""
        try:
            self._model: Any = torch.jit.load(path, map_location=device).eval()
        except (RuntimeError, OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0][:120]
            raise FolderError(f"{path} cannot be loaded as TorchScript ({reason}).") from None
        self._device = device
        names = {argument.name for argument in self._model.forward.schema.arguments}
        self._options = {RETURN_FEATURES: True} if RETURN_FEATURES in names else {}
        self.sha256 = sha256(path)

    def __call__(self, x: Tensor) -> FeatureOutput:
        """Return features (B, D), and no logits, of x (B, 1 or 3, H, W) in [-1, 1], on the CPU.

        The network gets bytes (B, 3, H, W) and resizes them itself. Raises ShapeError for another
        shape, or where the network does not return (B, D).
        """
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ShapeError(f"images have shape {tuple(x.shape)}; Inception takes (B, 3, H, W).")
        pixels = to_bytes(x.to(self._device)).expand(-1, 3, -1, -1)
        with torch.no_grad():
            features = self._model(pixels, **self._options)
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(x):
            raise ShapeError(
                f"a TorchScript Inception must return features ({len(x)}, D), got "
                f"{tuple(getattr(features, 'shape', ()))}. Use the published file."
            )
        return FeatureOutput(features.float().cpu(), None)
