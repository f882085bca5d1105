"""Streaming: every image once an epoch, any update by counting, each part its own blocks."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fewstep.data import Ahead, DataConfig, Shards, examples, open_dataset
from fewstep.errors import DataError, RangeError

NAMES = ["cat", "dog", "eel"]
ROWS, FILES, GROUP = 90, 3, 10


def png(value: int) -> bytes:
    """An image that says its number: in red the hundreds, in green the rest."""
    out = io.BytesIO()
    pixels = np.full((4, 4, 3), (value // 100, value % 100, 7), np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def shards(folder: Path, bad: int | None = None, rows: int = ROWS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES))
    for f in range(FILES):
        numbers = range(f * rows, (f + 1) * rows)
        images = [{"bytes": b"no" if n == bad else png(n), "path": None} for n in numbers]
        table = datasets.Dataset.from_dict(
            {"image": images, "label": [n % 3 for n in numbers]}, features=features
        )
        pq.write_table(table.data.table, folder / f"part-{f}.parquet", row_group_size=GROUP)
    return folder


def config(path: Path, **more: object) -> DataConfig:
    shared = {"name": str(path), "size": 4, "held_out": 0.0, "stream": True}
    return DataConfig.model_validate({**shared, **more})


def numbers(x: torch.Tensor) -> list[int]:
    pixels = ((x[:, :2, 0, 0] + 1) * 127.5).round().long()
    found: list[int] = (100 * pixels[:, 0] + pixels[:, 1]).tolist()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards(tmp_path_factory.mktemp("shards") / "train")


def test_an_example_is_what_its_number_says(folder: Path) -> None:
    data = open_dataset(config(folder))
    assert isinstance(data, Shards)
    assert (len(data), data.shape, data.class_names) == (270, (3, 4, 4), tuple(NAMES))
    index = torch.tensor([269, 0, 91, 90, 0])
    x, labels = data.batch(index)
    assert numbers(x) == index.tolist()
    assert labels.equal(index % 3)
    with pytest.raises(DataError, match="270"):
        data.batch(torch.tensor([270]))


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_an_epoch_shows_every_image_once_over_all_parts(folder: Path, parts: int) -> None:
    data = Shards(config(folder))
    seen: dict[int, list[int]] = {}
    for part in range(parts):
        for update in range(2 * 270 // parts // 7 + 20):
            index, epoch = examples(data, 5, update, 7, part=part, parts=parts)
            assert len(index) == len(epoch) == 7
            for i, e in zip(index.tolist(), epoch.tolist(), strict=True):
                seen.setdefault(e, []).append(i)
    for epoch in (0, 1):
        assert sorted(seen[epoch]) == list(range(270))
    assert seen[0] != seen[1]
    assert seen[0] != sorted(seen[0])


def test_any_update_is_found_by_counting(folder: Path) -> None:
    forward, fresh = Shards(config(folder)), Shards(config(folder))
    seen = [forward.examples(1, u, 16, part=1, parts=2) for u in range(60)]
    for update in (59, 3, 31, 16):
        index, epoch = fresh.examples(1, update, 16, part=1, parts=2)
        assert index.equal(seen[update][0])
        assert epoch.equal(seen[update][1])


def test_parts_read_blocks_of_their_own_and_hold_few(folder: Path) -> None:
    data = [Shards(config(folder)) for _ in range(2)]
    blocks: list[set[int]] = [set(), set()]
    for part in (0, 1):
        update = 0
        while True:
            index, epoch = data[part].examples(0, update, 5, part=part, parts=2)
            if int(epoch.max()) > 0:
                break
            data[part].batch(index)
            blocks[part] |= {int(i) // GROUP for i in index}
            assert len(data[part]._columns) <= 9
            update += 1
    assert not blocks[0] & blocks[1]
    assert len(blocks[0] | blocks[1]) >= 25


def test_the_split_is_by_place_and_leaves_nothing_out(folder: Path) -> None:
    parts = [Shards(config(folder, held_out=0.2), split) for split in ("train", "held-out")]
    seen = [numbers(d.batch(torch.arange(len(d)))[0]) for d in parts]
    assert sorted(seen[0] + seen[1]) == list(range(270))
    assert 30 < len(seen[1]) < 80
    assert parts[0].content_hash() != parts[1].content_hash()
    # The same images as the data that is decoded once.
    index, _ = parts[0].examples(0, 0, 8, part=0, parts=1)
    assert int(index.max()) < len(parts[0])


def test_a_bad_image_is_named_or_another_stands_in(tmp_path: Path) -> None:
    folder = shards(tmp_path / "bad", bad=95)
    with pytest.raises(DataError, match=r"part-1.parquet, row 5 is not a whole image"):
        Shards(config(folder)).batch(torch.arange(90, 100))
    data = Shards(config(folder, skip_bad=True))
    x, labels = data.batch(torch.tensor([94, 95, 96]))
    assert numbers(x) == [94, 96, 96]
    assert labels.tolist() == [94 % 3, 0, 0]
    assert data.skipped == 1


def test_what_cannot_be_streamed_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="no parquet files"):
        Shards(config(tmp_path))
    with pytest.raises(DataError, match=r"needs data.size"):
        Shards(config(folder, size=None))
    with pytest.raises(RangeError, match="27 row groups for 28 parts"):
        Shards(config(folder)).examples(0, 0, 1, part=0, parts=28)
    (tmp_path / "cut.parquet").write_bytes((folder / "part-0.parquet").read_bytes()[:500])
    with pytest.raises(DataError, match=r"cut.parquet is not a complete parquet file"):
        Shards(config(tmp_path))
    for name, table, says in [
        ("null", {"image": [b"x"] * 3, "label": [0, None, 1]}, "row 1 has no label"),
        ("one", {"image": [b"x"] * 3, "label": [4, 4, 4]}, "3 images of 1 class;"),
        ("none", {"picture": ["x"], "label": [1]}, "no column of images"),
    ]:
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table(table), path)
        with pytest.raises(DataError, match=says):
            Shards(config(path))


def test_labels_that_are_words(tmp_path: Path) -> None:
    table = pa.table({"image": [png(1), png(2), png(3)], "label": ["b", "a", "b"]})
    pq.write_table(table, tmp_path / "words.parquet")
    data = Shards(config(tmp_path / "words.parquet"))
    assert data.class_names == ("a", "b")
    assert data.batch(torch.arange(3))[1].tolist() == [1, 0, 1]


def test_ahead_answers_what_the_function_answers() -> None:
    calls: list[tuple[int, int, int]] = []

    def batch(update: int, part: int, parts: int) -> int:
        calls.append((update, part, parts))
        if update == 7:
            raise DataError("seven")
        return 100 * update + part

    ahead = Ahead(batch)
    asked = [(0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 2), (5, 0, 2), (6, 0, 2)]
    assert [ahead(*a) for a in asked] == [0, 1, 100, 101, 500, 600]
    assert calls.count((1, 0, 2)) == 1
    with pytest.raises(DataError, match="seven"):
        ahead(7, 0, 2)
