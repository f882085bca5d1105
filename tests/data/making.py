"""Small images and tables for the tests of data."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from fewstep.data import DataConfig, Dataset, images, open_dataset, shards


def png(seed: int) -> bytes:
    """An image whose red channel is its number."""
    out = io.BytesIO()
    pixels = np.full((4, 4, 3), (seed % 256, 0, 0), np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def put(path: Path, seed: int) -> Path:
    """Write the image of that number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(seed))
    return path


def numbers(data: Dataset) -> list[int]:
    """Return the numbers of the images of a data set, in order."""
    x, _ = data.batch(torch.arange(len(data)))
    found: list[int] = ((x[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    return found


def named(data: Dataset) -> list[str]:
    """Return the class name of each image, in order."""
    _, labels = data.batch(torch.arange(len(data)))
    assert isinstance(labels, torch.Tensor)
    return [data.class_names[k] for k in labels.tolist()]


def cells(count: int) -> list[dict[str, Any]]:
    """Return a column of images."""
    return [{"bytes": png(k), "path": None} for k in range(count)]


def parquet(path: Path, image: Any = None, **columns: Any) -> Path:
    """Write a table; by default with an image column as long as the others."""
    count = len(next(iter(columns.values()))) if columns else 0
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": cells(count) if image is None else image, **columns}), path)
    return path


def opened(path: Path, split: str = "train", **more: Any) -> Dataset:
    """Open all images of a path, of size 4, as a new process would."""
    images._cached.cache_clear()
    shards._footers.cache_clear()
    settings = {"name": str(path), "size": 4, "held_out": 0.0, **more}
    return open_dataset(DataConfig.model_validate(settings), split)
