"""Pack a parquet file of small images into one .npz file that travels to another machine.

    python benchmarks/gpu/pack_data.py train.parquet cifar10.npz --limit 16

The encoded images (JPEG, PNG) are kept byte for byte. Where they do not all fit below the limit,
each class keeps the same number of its first images, and the command prints how many.

cifar10.npz: data (bytes of all images), ends (N,) end of each image in data, labels (N,),
class_names. `packed.Packed` reads it with numpy and Pillow alone.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from pathlib import Path

import numpy as np

MIB = 2**20
OVERHEAD = 64 * 1024  # headers, names, and what zip needs


def read(path: Path) -> tuple[list[bytes], np.ndarray, list[str]]:
    """Return the encoded images, their class ids (N,) and the class names of a parquet file."""
    from fewstep.data.source import open_source

    source = open_source(path)
    images, labels = [], []
    for record in source:
        if not isinstance(record.data, bytes) or not isinstance(record.label, int):
            sys.exit(f"{record.where}: an image must be stored as bytes with an integer label.")
        images.append(record.data)
        labels.append(record.label)
    ids = np.array(labels, np.int64)
    names = list(source.class_names) or [str(k) for k in range(int(ids.max()) + 1)]
    return images, ids, names


def choose(images: list[bytes], labels: np.ndarray, limit: int) -> np.ndarray:
    """Return the places of the images to keep: all, or equally many of each class."""
    order = np.arange(len(labels))
    # The rank of each image within its class: a smaller file keeps the images of low rank.
    rank = np.empty(len(labels), np.int64)
    for k in np.unique(labels):
        rank[labels == k] = np.arange(int((labels == k).sum()))
    low, high = 0, int(rank.max()) + 1  # `low` images of each class fit, more than `high` do not
    if _size(images, labels, order) <= limit:
        return order
    while high - low > 1:
        count = (low + high) // 2
        if _size(images, labels, order[rank < count]) <= limit:
            low = count
        else:
            high = count
    if not low:
        sys.exit(f"not one image of each class fits into {limit / MIB:.1f} MiB; raise --limit.")
    return order[rank < low]


def _size(images: list[bytes], labels: np.ndarray, kept: np.ndarray) -> int:
    """Return the size of the file for these images, in bytes."""
    data = b"".join(images[k] for k in kept)
    ends = np.cumsum([len(images[k]) for k in kept])
    parts = (data, ends.tobytes(), labels[kept].tobytes())
    return OVERHEAD + sum(len(zlib.compress(part, 6)) for part in parts)


def pack(source: Path, target: Path, limit: int) -> int:
    """Write the images of a parquet file that fit below limit bytes; return their number."""
    images, labels, names = read(source)
    kept = choose(images, labels, limit)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Compression spares the headers, which are the same in every image.
    np.savez_compressed(
        target,
        data=np.frombuffer(b"".join(images[k] for k in kept), np.uint8),
        ends=np.cumsum([len(images[k]) for k in kept]),
        labels=labels[kept],
        class_names=np.array(names),
    )
    size = target.stat().st_size
    counts = np.bincount(labels[kept], minlength=len(names))
    print(
        f"{target}: {len(kept):,} of {len(images):,} images, {counts.min():,} to "
        f"{counts.max():,} of each of {len(names)} classes, {size:,} bytes ({size / MIB:.2f} MiB)"
    )
    return len(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a parquet file")
    parser.add_argument("target", type=Path, help="the .npz file to write")
    parser.add_argument("--limit", type=float, default=16.0, help="largest size, in MiB")
    given = parser.parse_args()
    pack(given.source, given.target, int(given.limit * MIB))


if __name__ == "__main__":
    main()
