"""Say how far an autoencoder alone takes images from the training images: no model can be nearer.

python docs/results/autoencoder.py PARTS IMAGES FEATURES

    python docs/results/autoencoder.py runs/latent-small-parts train.parquet runs/features/cifar32
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from fewstep.data import DataConfig, open_dataset
from fewstep.metrics import Reference, distance_key, measure, open_features
from fewstep.models import decode_latents, encode_images, load_vae

COUNT = 2000


def main(parts: Path, images: str, features: Path) -> None:
    data = open_dataset(DataConfig(name=images, size=32, held_out=0.05), "train")
    look, vae = open_features(features), load_vae(parts)
    everything = torch.cat([data.batch(i)[0] for i in torch.arange(len(data)).split(1000)])
    x, labels = data.batch(torch.arange(COUNT))
    back = decode_latents(vae, encode_images(vae, x, 100), 100).clamp(-1, 1)
    reference = Reference.build(everything, look)
    for name, shown in (("training images", x), ("through the autoencoder", back)):
        found = measure(shown, labels, features=look, reference=reference)
        fd = distance_key(found)
        print(f"{COUNT} {name}: {fd} {found[fd]:.2f}, accuracy {found['accuracy']:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
