"""Print how far an autoencoder alone takes images from the training images.

    python -m studies autoencoder runs/latent-small-parts train.parquet runs/features/cifar32

No model of its latents can come closer to the training images than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewstep.data import DataConfig, open_dataset
from fewstep.folders import load_vae
from fewstep.metrics import Reference, distance_key, measure, open_features
from fewstep.models import decode_latents, encode_images
from studies.common import argument_parser


def main(arguments: Sequence[str]) -> None:
    """Print both distances and accuracies: of the images, and of what the autoencoder returns."""
    parser = argument_parser("autoencoder", __doc__)
    parser.add_argument("parts", type=Path, help="a pipeline folder, or one with vae/ in it")
    parser.add_argument("images", help="the training images, a parquet file")
    parser.add_argument("features", type=Path, help="a vision model's folder, or Inception's file")
    parser.add_argument("--size", type=int, default=32, help="of the images, in pixels; default 32")
    parser.add_argument("--count", type=int, default=2000, help="images compared; default 2000")
    given = parser.parse_args(arguments)
    config = DataConfig(name=given.images, size=given.size, held_out=0.05)
    print("\n".join(compare(given.parts, config, given.features, given.count)))


def compare(parts: Path, config: DataConfig, features: Path, count: int) -> list[str]:
    """Return one line for the first `count` training images, one for their reconstructions."""
    data = open_dataset(config, "train")
    extractor, vae = open_features(features), load_vae(parts)
    everything = torch.cat([data.batch(i)[0] for i in torch.arange(len(data)).split(1000)])
    x, labels = data.batch(torch.arange(count))
    assert isinstance(labels, Tensor)  # images have class ids
    decoded = decode_latents(vae, encode_images(vae, x, 100), 100).clamp(-1, 1)
    reference = Reference.build(everything, extractor)
    lines = []
    for name, images in (("training images", x), ("through the autoencoder", decoded)):
        figures = measure(images, labels, features=extractor, reference=reference)
        fd = distance_key(figures)
        lines.append(f"{count} {name}: {fd} {figures[fd]:.2f}, accuracy {figures['accuracy']:.3f}")
    return lines
