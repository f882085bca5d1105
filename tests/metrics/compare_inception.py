"""Our Inception beside that of torch-fidelity, on the same random weights and images.

    pip install torch-fidelity && python tests/metrics/compare_inception.py

Run once by hand: torch-fidelity is no dependency. Prints the largest differences; exits with 1
where one is larger than rounding.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from unittest.mock import MagicMock

import torch

if importlib.util.find_spec("torchvision") is None:
    # torch-fidelity imports it, but not for this class.
    for name in ("", ".transforms", ".datasets", ".transforms.functional", ".models"):
        sys.modules[f"torchvision{name}"] = MagicMock()

from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from fewstep.metrics.inception import Inception, InceptionFeatures


def random_weights() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    state = Inception().state_dict()
    for key, value in state.items():
        if key.endswith("running_var"):
            state[key] = torch.rand(value.shape, generator=g) + 0.5
        elif value.ndim > 1:
            state[key] = torch.randn(value.shape, generator=g) * (2 / value[0].numel()) ** 0.5
        elif value.is_floating_point():
            state[key] = 0.5 * torch.rand(value.shape, generator=g) + 0.5 * key.endswith("weight")
    return state


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pth"
        torch.save(random_weights(), path)
        ours = InceptionFeatures(path)
        theirs = FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
    worst = 0.0
    for side in (32, 64, 299, 400):
        g = torch.Generator().manual_seed(side)
        pixels = torch.randint(0, 256, (4, 3, side, side), generator=g, dtype=torch.uint8)
        mine = ours(pixels.float() / 127.5 - 1)
        assert mine.logits is not None
        for name, a, b in zip(("features", "logits"), mine, theirs(pixels), strict=True):
            difference = float((a - b).abs().max() / b.abs().max())
            worst = max(worst, difference)
            print(f"{side:>4} {name:<9} {difference:.1e} of the largest")
    return int(worst > 1e-5)


if __name__ == "__main__":
    sys.exit(main())
