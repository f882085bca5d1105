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
from collections import Counter, OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fewstep.atomic import json_sha256
from fewstep.core.seed import generator
from fewstep.data.augment import uniform
from fewstep.data.captions import texts_of
from fewstep.data.config import DataConfig
from fewstep.data.dataset import check_index, check_split
from fewstep.data.found import BAD, Account, label_of
from fewstep.data.images import check_classes, check_some, decode_for, refusal
from fewstep.data.labels import number_classes
from fewstep.data.listing import kind_of
from fewstep.data.source import open_source, table_files
from fewstep.data.tables import (
    choose_columns,
    image_record,
    inside,
    is_arrow,
    open_table,
    rows_of,
)
from fewstep.errors import DataError, RangeError, in_units
from fewstep.pixels import from_bytes

WINDOW = 8  # blocks among whose images an order is drawn
THREADS = 4  # decoding lets go of the interpreter's lock
LARGEST = 1 << 29  # bytes of a block; more would not be bounded memory


class Block(NamedTuple):
    """A row group of a file.

    group: its number there. first: place of its first row among all files. rows: how many it has.
    row: place of its first row in the file.
    """

    file: Path
    group: int
    first: int
    rows: int
    row: int


class Shards:
    """A split of parquet shards; `fewstep.data.Dataset`, with examples dealt block by block.

    Attributes:
        skipped: number of rows without a label, and of bad images that another replaced so far.
        class_texts: of each class id, what stands in a prompt: its name, underscores as spaces, or
            the caption as it is written.
        summary: what was seen, used and left out, in one line; images are not looked at yet.
    """

    def __init__(self, config: DataConfig, split: str = "train") -> None:
        """Read the files' footers and labels; no image yet.

        Raises DataError: no parquet files, no column of images or labels, missing labels (unless
        skip_bad), fewer than two classes (one will do for prompts), a block of more than half a
        gibibyte, no size given.
        """
        check_split(split)
        if config.size is None:
            raise DataError(
                "data.stream needs data.size: images are not read beforehand. Set data.size."
            )
        self.split, self._config = split, config
        found = _footers(config)
        self._blocks, self._image, self._key = found.blocks, found.image, found.key
        self._labels, self.class_names = found.labels, found.class_names
        self.num_classes = len(found.class_names)
        self.shape: tuple[int, ...] = (config.channels, config.size, config.size)
        used = (found.labels >= 0).nonzero().flatten()
        # The place among the rows with a label, as in data that is decoded once.
        held_out = uniform(0, "held-out", torch.arange(len(used))) < config.held_out
        self._kept = used[held_out if split == "held-out" else ~held_out]
        check_some(config, split, len(self._kept))
        held, account = int(held_out.sum()), found.account
        account = account._replace(train=len(held_out) - held, held_out=held)
        self.skipped = account.left_out[BAD]
        self.class_texts = texts_of(found.class_names, account.captions)
        self.summary = account.line(config.name)
        ends = torch.tensor([b.first + b.rows for b in self._blocks])
        cuts = torch.searchsorted(self._kept, ends)
        self._ends = ends
        self._spans = [
            (int(a), int(b)) for a, b in zip([0, *cuts[:-1].tolist()], cuts.tolist(), strict=True)
        ]
        self._columns: OrderedDict[int, Any] = OrderedDict()
        self._parts: set[int] = set()
        self._pool = ThreadPoolExecutor(THREADS)
        self._reading = Lock()  # batches are also read ahead, in another thread

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._kept)

    def content_hash(self) -> str:
        """Return the sha256, in hex, of names, sizes, footers and labels, not of every pixel."""
        config = self._config
        return json_sha256([self._key, self.split, config.held_out, *self.shape, config.background])

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return x (B, C, H, W) float32 in [-1, 1] and class ids (B,).

        Raises DataError, naming the file and row, for a bad image; with skip_bad the next good
        one of its block stands in for it, class and all.
        """
        check_index(index, len(self))
        places = self._kept[index]
        number = torch.searchsorted(self._ends, places, right=True).tolist()
        with self._reading:
            columns = {b: self._column(b) for b in dict.fromkeys(number)}
        asked = list(zip(number, places.tolist(), strict=True))
        found = list(self._pool.map(lambda a: self._decode(columns[a[0]], *a), asked))
        pixels = torch.from_numpy(np.stack([image for image, _ in found]))
        labels = self._labels[torch.tensor([place for _, place in found], dtype=torch.int64)]
        return from_bytes(pixels), labels

    def examples(
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
                "batch (processes x accumulate), and needs one for each. Write it with smaller row "
                "groups."
            )
        self._parts.add(part)
        start, index, epoch_of = update * size, [], []
        epoch = 0
        while start >= (length := self._share(seed, epoch, part, parts)[1]):
            start, epoch = start - length, epoch + 1
        wanted = size
        while wanted:
            if start == self._share(seed, epoch, part, parts)[1]:  # at its end, or it is empty
                start, epoch = 0, epoch + 1
                continue
            chunk = self._from(seed, epoch, part, parts, start, wanted)
            index.append(chunk)
            epoch_of.append(torch.full((len(chunk),), epoch))
            wanted, start = wanted - len(chunk), start + len(chunk)
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

    def _column(self, block: int) -> Any:
        if block in self._columns:
            self._columns.move_to_end(block)
            return self._columns[block]
        import pyarrow as pa
        import pyarrow.parquet as pq

        file, group, *_ = self._blocks[block]
        try:
            column = pq.ParquetFile(file).read_row_group(group, [self._image]).column(0)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{file}, row group {group} cannot be read: {error}.") from None
        self._columns[block] = column
        while len(self._columns) > (WINDOW + 1) * max(1, len(self._parts)):
            self._columns.popitem(last=False)
        return column

    def _decode(self, column: Any, block: int, place: int) -> tuple[np.ndarray, int]:
        """Return the image at a place, and the place that it was read from in the end."""
        at, config = self._blocks[block], self._config
        start, stop = self._spans[block]
        here = int(torch.searchsorted(self._kept, place))
        for step in range(stop - start):
            row = int(self._kept[start + (here - start + step) % (stop - start)])
            where = f"{at.file}, row {at.row + row - at.first}"
            try:
                record = image_record(column[row - at.first].as_py(), at.file.parent, where)
                return decode_for(record, config), row
            except DataError as error:
                if not config.skip_bad:
                    raise DataError(
                        f"{error} Mend it, or leave bad images out with data.skip_bad=true."
                    ) from None
                self.skipped += 1
        raise DataError(f"{at.file}, row group {at.group} has no good image at all.")


class _Footers(NamedTuple):
    blocks: list[Block]
    image: str
    labels: Tensor  # -1 where there is none
    class_names: tuple[str, ...]
    key: str
    account: Account


@functools.lru_cache(maxsize=4)
def _footers(config: DataConfig) -> _Footers:
    path = Path(config.name)
    files, left_out = _parquet_files(path)
    tables = [open_table(f) for f in files]
    chosen = choose_columns(tables, config, path)
    blocks: list[Block] = []
    groups: list[list[Any]] = []
    labels: list[int | str | None] = []
    bad: list[str] = []
    known = len(chosen.class_names)
    for table in tables:
        for block in _blocks_of(table.file, len(labels)):
            blocks.append(block)
            size = table.file.stat().st_size
            groups.append([inside(table.file, path), size, block.group, block.rows])
        for row, (value,) in enumerate(rows_of(table.file, [chosen.label.name], 10_000)):
            where = f"{table.file}, row {row}"
            try:
                labels.append(label_of(value, where, len(labels), chosen.label.captions, known))
            except DataError as error:
                bad.append(str(error))
                labels.append(None)
    if bad and not config.skip_bad:
        raise DataError(refusal(bad))
    found = number_classes([v for v in labels if v is not None], chosen.class_names)
    check_classes(found, len(found.ids), config, bad)
    ids = np.full(len(labels), -1, np.int64)
    ids[[v is not None for v in labels]] = found.ids
    digest = hashlib.sha256(json.dumps([groups, found.names]).encode())
    digest.update(ids.tobytes())
    account = Account(
        "rows", len(labels), len(found.ids), 0, 0, len(found.names), chosen.label.captions,
        chosen.words, left_out + Counter({BAD: len(bad)}),
    )  # fmt: skip
    key = digest.hexdigest()
    return _Footers(blocks, chosen.image, torch.from_numpy(ids), found.names, key, account)


def _parquet_files(path: Path) -> tuple[list[Path], Counter[str]]:
    if kind_of(path) is None:
        open_source(path)  # explains what is wrong
    files, left_out = table_files(path)
    if not files or is_arrow(files[0]):
        raise DataError(
            f"{path} holds no parquet files, and data.stream reads these alone. Leave data.stream "
            "out, or give parquet files."
        )
    return files, left_out


def _blocks_of(file: Path, first: int) -> Iterator[Block]:
    """Yield the row groups of a file; first: the place of its first row among all."""
    import pyarrow.parquet as pq

    row = 0
    metadata = pq.ParquetFile(file).metadata
    for group in range(metadata.num_row_groups):
        meta = metadata.row_group(group)
        if meta.total_byte_size > LARGEST:
            raise DataError(
                f"{file}, row group {group} has {in_units(meta.total_byte_size)}; a block must fit "
                "in memory many times over. Write it with smaller row groups: row_group_size=1000."
            )
        if meta.num_rows:
            yield Block(file, group, first + row, meta.num_rows, row)
        row += meta.num_rows
