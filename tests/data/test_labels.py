"""Labels: the classes that are there, in one order, the same for cached and streamed data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from tests.data.making import cells, named, numbers, opened, parquet

from fewstep.errors import DataError

BOTH = pytest.mark.parametrize("stream", [False, True], ids=["cached", "streamed"])


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


@BOTH
@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([1, 0, 1], ("0", "1")),
        ([2084071, 2084072, 2084071], ("2084071", "2084072")),
        ([7, 3, 5], ("3", "5", "7")),
        ([1.0, 10.0, 2.0], ("1", "2", "10")),
        (["b", "a", "b"], ("a", "b")),
        (["10", "9", "1"], ("1", "9", "10")),
        ([True, False, True], ("False", "True")),
        (pa.array([0, 2, 0], pa.uint64()), ("0", "2")),
        (pa.array(["cat", "dog", "cat"]).dictionary_encode(), ("cat", "dog")),
    ],
)
def test_classes_are_those_that_are_there_in_numeric_order(
    labels: Any, names: tuple[str, ...], stream: bool, tmp_path: Path
) -> None:
    data = opened(parquet(tmp_path / "t.parquet", label=labels), stream=stream)
    assert data.class_names == names
    given = labels.to_pylist() if isinstance(labels, pa.Array) else labels
    shown = [str(int(v)) if isinstance(v, float) else str(v) for v in given]
    assert named(data) == shown
    assert numbers(data) == [0, 1, 2]


@BOTH
def test_declared_names_are_those_of_the_classes_that_are_there(
    stream: bool, tmp_path: Path
) -> None:
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["ant", "bee", "cow", "dog"])
    )
    rows = {"image": cells(3), "label": [3, 1, 3]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "t.parquet")
    data = opened(tmp_path / "t.parquet", stream=stream)
    assert data.class_names == ("bee", "dog")
    assert named(data) == ["dog", "bee", "dog"]


BAD = [
    (pa.array([0.0, math.nan, 1.0, 0.0]), "row 1 has no label"),
    (pa.array([0, -1, 1, 0]), "row 1 has no label"),
    (pa.array([0, None, 1, 0]), "row 1 has no label"),
    (pa.array(["a", "", "b", "a"]), "row 1 has no label"),
    (pa.array([0.0, 1.5, 1.0, 0.0]), "row 1 has a label of type float, 1.5; labels"),
    (pa.array([0.0, math.inf, 1.0, 0.0]), "row 1 has a label of type float"),
    (pa.array([0, 2**40, 1, 0]), "row 1 has label 1099511627776; labels may be at most"),
    (pa.array([0, 2**64 - 1, 1, 0], pa.uint64()), "row 1 has label 18446744073709551615;"),
]


@BOTH
@pytest.mark.parametrize(("labels", "message"), BAD)
def test_a_bad_label_is_named_by_its_row_or_left_out_with_a_count(
    labels: Any, message: str, stream: bool, tmp_path: Path
) -> None:
    path = parquet(tmp_path / "t.parquet", label=labels)
    with pytest.raises(DataError, match=message) as caught:
        opened(path, stream=stream)
    assert "\n" not in str(caught.value)
    data = opened(path, stream=stream, skip_bad=True)
    assert numbers(data) == [0, 2, 3]
    assert (data.num_classes, data.skipped) == (2, 1)
    assert "4 rows seen, 3 used" in data.summary
    assert "1 (bad images or labels)" in data.summary


@BOTH
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[1], [2]], "label of type list"),
        ([{"a": 1}, {"a": 2}], "label of type dict"),
        ([4, 4], "2 images of 1 class;.*two or more.*latents.cond=prompt"),
        (pa.array([], pa.int64()), "has no rows"),
        (pa.nulls(2), "row 0 has no label"),
    ],
)
def test_labels_that_cannot_be(labels: Any, message: str, stream: bool, tmp_path: Path) -> None:
    image = None if len(labels) else pa.array([], pa.struct([("bytes", pa.binary())]))
    path = parquet(tmp_path / "t.parquet", image, label=labels)
    with pytest.raises(DataError, match=message) as caught:
        opened(path, stream=stream)
    assert "\n" not in str(caught.value)


def test_cached_and_streamed_data_are_split_alike_when_rows_have_no_label(tmp_path: Path) -> None:
    labels = [k % 2 if k % 7 else None for k in range(100)]
    path = parquet(tmp_path / "t.parquet", label=labels)
    for split in ("train", "held-out"):
        cached, streamed = (
            opened(path, split, stream=s, skip_bad=True, held_out=0.3) for s in (False, True)
        )
        assert numbers(cached) == numbers(streamed)
        assert named(cached) == named(streamed)
        assert cached.summary == streamed.summary


def test_all_bad_images_are_counted_and_the_first_three_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", [b"no"] * 14 + [b""], label=[0, 1, 2] * 5)
    with pytest.raises(DataError, match=r"15 images cannot be used.*row 0 is not a whole.*row 2 is "
                       r".*12 more.*--set data\.skip_bad=true") as caught:  # fmt: skip
        opened(path)
    assert "row 3" not in str(caught.value)
    with pytest.raises(DataError, match=r"no image that can be used: .*row 0"):
        opened(path, skip_bad=True)
