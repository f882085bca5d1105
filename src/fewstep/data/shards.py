"""Parquet shards read as they are needed: for data that is too large to be decoded once and kept.

A block is a row group of a file. Every epoch deals the blocks, in a drawn order, to the parts of a
batch; a part reads its blocks a few at a time and draws an order among their images. So a process
reads what it alone needs, holds a few encoded blocks, and finds the place of any update by
counting.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fewstep.core.seed import generator
from fewstep.data.augment import uniform
from fewstep.data.config import DataConfig
from fewstep.data.dataset import check_index, check_split
from fewstep.data.source import Record, decode, label_columns, missing_column
from fewstep.errors import DataError, RangeError

WINDOW = 8  # blocks among whose images an order is drawn
THREADS = 4  # decoding lets go of the interpreter's lock
LARGEST = 1 << 29  # bytes of a block; more would not be bounded memory


class Block(NamedTuple):
    """A row group: its file, its number there, and the places of its rows among all."""

    file: Path
    group: int
    first: int
    rows: int


class Shards:
    """A split of parquet shards; `fewstep.data.Dataset`, with an order of its own.

    Attributes:
        skipped: number of bad images that another stood in for, so far.
    """

    def __init__(self, config: DataConfig, split: str = "train") -> None:
        """Read the files' footers and labels; no image yet.

        Raises DataError: no parquet files, no column of images or labels, a missing label, fewer
        than two classes, a block of more than half a gibibyte, no size given.
        """
        check_split(split)
        if config.size is None:
            raise DataError("data.stream needs data.size: nothing is known of unread images.")
        self.split, self._config, self.skipped = split, config, 0
        found = _footers(config)
        self._blocks, self._image, self._key = found.blocks, found.image, found.key
        self._labels, self.class_names = found.labels, found.class_names
        self.num_classes, self.shape = (
            len(found.class_names),
            (
                config.channels,
                config.size,
                config.size,
            ),
        )
        held_out = uniform(0, "held-out", torch.arange(len(self._labels))) < config.held_out
        self._kept = (held_out if split == "held-out" else ~held_out).nonzero().flatten()
        if not len(self._kept):
            raise DataError(
                f"{config.name} has no {split} images with held_out = {config.held_out:g}."
            )
        ends = torch.tensor([b.first + b.rows for b in self._blocks])
        cuts = torch.searchsorted(self._kept, ends)
        self._ends = ends
        self._spans = [
            (int(a), int(b)) for a, b in zip([0, *cuts[:-1].tolist()], cuts.tolist(), strict=True)
        ]
        self._tables: OrderedDict[int, Any] = OrderedDict()
        self._parts: set[int] = set()
        self._pool = ThreadPoolExecutor(THREADS)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._kept)

    def content_hash(self) -> str:
        """Return the sha256, in hex, of names, sizes, footers and labels, not of every pixel."""
        told = [self._key, self.split, self._config.held_out, *self.shape]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return x (B, C, H, W) float32 in [-1, 1] and class ids (B,).

        Raises DataError, naming the file and row, for a bad image; with skip_bad the next good
        one of its block stands in for it, class and all.
        """
        check_index(index, len(self))
        places = self._kept[index]
        number = torch.searchsorted(self._ends, places, right=True).tolist()
        columns = {b: self._table(b) for b in dict.fromkeys(number)}
        asked = list(zip(number, places.tolist(), strict=True))
        found = list(self._pool.map(lambda a: self._decode(columns[a[0]], *a), asked))
        pixels = torch.from_numpy(np.stack([image for image, _ in found]))
        labels = self._labels[torch.tensor([place for _, place in found], dtype=torch.int64)]
        return pixels.float().div_(127.5).sub_(1.0), labels

    def order(
        self, seed: int, update: int, size: int, *, part: int, parts: int
    ) -> tuple[Tensor, Tensor]:
        """Return the examples (size,) of one part of one update, and the epoch of each.

        A pure function of its arguments. Each part goes through its share of an epoch, every
        image once, and on to the next; shares differ by a block or so.

        Raises RangeError for more parts than blocks.
        """
        if parts > len(self._blocks):
            raise RangeError(
                f"{self._config.name} has {len(self._blocks)} row groups for {parts} parts of a "
                "batch (processes x accumulate); write it with smaller row groups."
            )
        self._parts.add(part)
        start, index, epoch_of = update * size, [], []
        epoch = 0
        while start >= (length := self._share(seed, epoch, part, parts)[1]):
            start, epoch = start - length, epoch + 1
        wanted = size
        while wanted:
            chunk = self._from(seed, epoch, part, parts, start, wanted)
            index.append(chunk)
            epoch_of.append(torch.full((len(chunk),), epoch))
            wanted, start = wanted - len(chunk), start + len(chunk)
            if start == self._share(seed, epoch, part, parts)[1]:
                start, epoch = 0, epoch + 1
        return torch.cat(index), torch.cat(epoch_of)

    def _from(
        self, seed: int, epoch: int, part: int, parts: int, start: int, wanted: int
    ) -> Tensor:
        blocks, _ = self._share(seed, epoch, part, parts)
        for k in range(0, len(blocks), WINDOW):
            window = blocks[k : k + WINDOW]
            length = sum(self._spans[b][1] - self._spans[b][0] for b in window)
            if start < length:
                drawn = self._window(seed, epoch, part, window)
                return drawn[start : start + wanted]
            start -= length
        raise AssertionError("start lies beyond the epoch")

    @functools.lru_cache(maxsize=4096)  # noqa: B019  one or two of these live as long as a run
    def _share(self, seed: int, epoch: int, part: int, parts: int) -> tuple[tuple[int, ...], int]:
        g = generator("cpu", seed, "blocks", epoch)
        dealt = torch.randperm(len(self._blocks), generator=g)[part::parts].tolist()
        return tuple(dealt), sum(self._spans[b][1] - self._spans[b][0] for b in dealt)

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def _window(self, seed: int, epoch: int, part: int, blocks: tuple[int, ...]) -> Tensor:
        numbers = torch.cat([torch.arange(*self._spans[b]) for b in blocks])
        g = generator("cpu", seed, "window", epoch, part, blocks[0])
        return numbers[torch.randperm(len(numbers), generator=g)]

    def _table(self, block: int) -> Any:
        if block in self._tables:
            self._tables.move_to_end(block)
            return self._tables[block]
        import pyarrow as pa
        import pyarrow.parquet as pq

        file, group, *_ = self._blocks[block]
        try:
            column = pq.ParquetFile(file).read_row_group(group, [self._image]).column(0)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file}, row group {group} cannot be read: {error}.") from None
        self._tables[block] = column
        while len(self._tables) > (WINDOW + 1) * max(1, len(self._parts)):
            self._tables.popitem(last=False)
        return column

    def _decode(self, column: Any, block: int, place: int) -> tuple[np.ndarray, int]:
        """Return the image at a place, and the place it was found at in the end."""
        at = self._blocks[block]
        for step in range(at.rows):
            row = (place - at.first + step) % at.rows
            value = column[row].as_py()
            data = value.get("bytes") if isinstance(value, dict) else value
            where = f"{at.file}, row {at.first + row}"
            try:
                record = Record(where, data or b"", None)
                return decode(record, self._config.size, self._config.channels), at.first + row
            except DataError as error:
                if not self._config.skip_bad:
                    raise DataError(
                        f"{error} Mend it, or leave bad images out with data.skip_bad=true."
                    ) from None
                self.skipped += 1
        raise DataError(f"{at.file}, row group {at.group} has no good image at all.")


class _Footers(NamedTuple):
    blocks: list[Block]
    image: str
    labels: Tensor
    class_names: tuple[str, ...]
    key: str


@functools.lru_cache(maxsize=4)
def _footers(config: DataConfig) -> _Footers:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(config.name)
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not files:
        raise DataError(f"{path} holds no parquet files; data.stream reads these alone.")
    blocks, labels, told = [], [], []
    image = label = None
    names: tuple[str, ...] = ()
    first = 0
    for file in files:
        try:
            opened = pq.ParquetFile(file)
            image, label, names = _columns(opened.schema_arrow, file, config.label)
            values = opened.read([label]).column(0)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file} is no whole parquet file: {error}.") from None
        labels.append(_label_array(values, file))
        for group in range(opened.metadata.num_row_groups):
            meta = opened.metadata.row_group(group)
            if meta.total_byte_size > LARGEST:
                raise DataError(
                    f"{file}, row group {group} has {meta.total_byte_size >> 20} MiB; a block must "
                    "fit in memory many times over. Write it with row_group_size=1000, say."
                )
            blocks.append(Block(file, group, first, meta.num_rows))
            told.append([str(file.relative_to(path)), file.stat().st_size, group, meta.num_rows])
            first += meta.num_rows
    assert image is not None
    together = np.concatenate(labels)
    ids, class_names = _ids(together, names, path)
    digest = hashlib.sha256(json.dumps([told, list(class_names)]).encode())
    digest.update(ids.tobytes())
    return _Footers(blocks, image, torch.from_numpy(ids), class_names, digest.hexdigest())


def _columns(schema: Any, file: Path, label: str | None) -> tuple[str, str, tuple[str, ...]]:
    import datasets
    import pyarrow as pa

    features = datasets.Features.from_arrow_schema(schema)
    images = [k for k, v in features.items() if isinstance(v, datasets.Image)]
    for field in schema:
        struct = pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        if field.name not in images and (struct or pa.types.is_binary(field.type)):
            images.append(field.name)
    labels = label_columns(features, label)
    if not images or not labels:
        what = missing_column(images, label)
        raise DataError(f"{file} has no column of {what}; its columns are {', '.join(features)}.")
    return images[0], labels[0], tuple(getattr(features[labels[0]], "names", ()) or ())


def _label_array(values: Any, file: Path) -> np.ndarray:
    if values.null_count:
        row = values.is_null().to_pylist().index(True)
        raise DataError(f"{file}, row {row} has no label.")
    found = values.to_numpy()
    if found.dtype.kind in "iu" and len(found) and found.min() < 0:
        raise DataError(f"{file}, row {int((found < 0).argmax())} has no label.")
    array: np.ndarray = found.astype(np.int64) if found.dtype.kind in "iu" else found.astype(str)
    return array


def _ids(
    labels: np.ndarray, names: tuple[str, ...], path: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    distinct = np.unique(labels)
    if len(distinct) < 2:
        raise DataError(
            f"{path} has {len(labels)} images of {len(distinct)} class"
            f"{'' if len(distinct) == 1 else 'es'}; guidance needs at least 2."
        )
    if labels.dtype.kind == "i":
        known = names or tuple(map(str, range(int(distinct[-1]) + 1)))
        if distinct[-1] >= len(known):
            raise DataError(f"{path} has label {distinct[-1]}; there are {len(known)} classes.")
        return labels, known
    return np.searchsorted(distinct, labels).astype(np.int64), tuple(map(str, distinct))
