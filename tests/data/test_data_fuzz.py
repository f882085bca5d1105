"""Data folders and tables made at random: images, or one line that says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.making import cells, opened, parquet, png, put

from fewstep.data import image_files
from fewstep.errors import DataError

FEW = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


def usable_or_one_line(path: Path, **more: Any) -> bool:
    """Read every image of a path, or get a DataError of one line."""
    try:
        data = opened(path, **more)
        x, labels = data.batch(torch.arange(len(data)))
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017  no error is right, too
        return False
    assert len(x) == len(data) > 0
    assert isinstance(labels, torch.Tensor)
    assert 0 <= int(labels.min()) <= int(labels.max()) < data.num_classes
    assert len(set(data.class_names)) == len(data.class_texts) == data.num_classes
    assert "\n" not in data.summary
    return True


NAMES = st.sampled_from(["train", "test", "a", "b c", "u*", "x.png", "0", "10", "é", ".h", "__x"])
FILES = st.sampled_from(
    ["0.png", "train-0.png", "1.JPG", "2.txt", "0.txt", "metadata.jsonl", "metadata.csv", "n.tar",
     "train-00000-of-00001.parquet", "test.parquet", "README.md", "state.json", "[1].png", "x"]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
    | st.sampled_from(["0.png", "a/0.png", "../0.png", "a cat"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["file_name", "text", "label"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
CONTENT = st.one_of(
    st.integers(0, 99).map(png),
    st.integers(0, 99).map(lambda k: png(k)[:40]),
    st.just(b""),
    st.binary(max_size=60),
    st.lists(
        st.fixed_dictionaries(
            {"file_name": JSON}, optional={"text": JSON, "label": JSON}
        ) | JSON,
        max_size=4,
    ).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    st.sampled_from([b"file_name,text\n0.png,a\n", b"a caption\n", b"\xff\xfea\0", b"{}"]),
)  # fmt: skip
KIND = st.sampled_from(["file", "file", "file", "link", "broken", "folder"])
TREE = st.lists(st.tuples(st.lists(NAMES, max_size=3), FILES, CONTENT, KIND), max_size=5)


def good(kind: str, root: Path) -> None:
    """Make a folder that can be used, for mutations to begin from."""
    if kind == "classes":
        for k, name in enumerate(["a", "a", "b c", "train"]):
            put(root / name / f"{k}.png", k)
    elif kind in ("captions", "metadata"):
        for k in range(3):
            put(root / f"{k}.png", k)
            (root / f"{k}.txt").write_text(f"caption {k}")
        rows = [{"file_name": f"{k}.png", "text": [f"one {k}", "two"]} for k in range(3)]
        if kind == "metadata":
            (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    elif kind == "hub":
        parquet(root / "train-00000-of-00001.parquet", label=[0, 1, 0])
        parquet(root / "data" / "test.parquet", label=[1, 1, 0])


@FEW
@given(
    kind=st.sampled_from(["nothing", "classes", "captions", "metadata", "hub"]),
    entries=TREE,
    cond=st.sampled_from(["class", "prompt"]),
    skip=st.booleans(),
)
def test_any_folder(
    tmp_path_factory: pytest.TempPathFactory, kind: str, entries: Any, cond: str, skip: bool
) -> None:
    root = tmp_path_factory.mktemp("set")
    good(kind, root)
    for folders, name, content, what in entries:
        path = root.joinpath(*folders, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if what == "file":
                path.write_bytes(content)
            elif what == "folder":
                path.mkdir()
            else:
                path.symlink_to(root if what == "link" else root / "gone")
        except OSError:  # a file where a folder is to be, or the other way round
            continue
    for stream in (False, True):
        usable_or_one_line(root, cond=cond, skip_bad=skip, stream=stream)
    try:
        assert image_files([root])
    except DataError as error:
        assert "has no images" in str(error)  # noqa: PT017


def mostly(good: st.SearchStrategy[Any], wild: st.SearchStrategy[Any]) -> Any:
    """Draw from the first in two of three cases."""
    return st.integers(0, 2).flatmap(lambda k: good if k else wild)


COLUMN = st.one_of(
    st.lists(st.sampled_from([0, 1, 2, -1, None, 2**31]), min_size=3, max_size=3),
    st.lists(st.none() | st.floats(), min_size=3, max_size=3),
    st.lists(st.none() | st.text(max_size=3), min_size=3, max_size=3),
    st.lists(st.none() | st.booleans(), min_size=3, max_size=3),
    st.lists(st.lists(st.none() | st.text(max_size=2), max_size=2), min_size=3, max_size=3),
    st.lists(st.lists(st.integers(0, 3), max_size=2), min_size=3, max_size=3),
    st.lists(st.none() | st.binary(max_size=3), min_size=3, max_size=3),
    st.lists(st.none() | st.dates() | st.datetimes(), min_size=3, max_size=3),
    st.lists(st.none() | st.decimals(0, 9, places=1), min_size=3, max_size=3),
)
IMAGE = st.one_of(
    st.just(cells(3)),
    st.just([c["bytes"] for c in cells(3)]),
    st.just([png(1), b"", None]),
    st.just(["none.png", None, "../x.png"]),
    st.just([{"bytes": None, "path": "x.png"}, {"bytes": png(0), "path": None}, None]),
    COLUMN,
)
TABLE = st.dictionaries(st.sampled_from(["label", "text", "image.x", "other"]), COLUMN, max_size=3)


@FEW
@given(
    image=mostly(st.just(cells(3)), IMAGE),
    table=mostly(
        st.sampled_from([{"label": [0, 1, 0]}, {"label": ["a", "b", "a"], "text": list("uvw")}]),
        TABLE,
    ),
    cond=st.sampled_from(["class", "prompt"]),
    skip=st.booleans(),
    cut=st.sampled_from([None] * 9 + [10, -20]),
    note=st.sampled_from([None, b"{", b'{"info": 3}', b'{"info": {"features": {"label": 1}}}',
                          b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": 3}}}}',
                          b'{"info": {"features": {"label": {"_type": "ClassLabel",'
                          b' "names": ["a", "b"]}}}}']),
)  # fmt: skip
def test_any_table(
    tmp_path_factory: pytest.TempPathFactory,
    image: Any,
    table: Any,
    cond: str,
    skip: bool,
    cut: int | None,
    note: bytes | None,
) -> None:
    path = tmp_path_factory.mktemp("table") / "t.parquet"
    try:
        made = pa.table({"image": image, **table})
    except pa.ArrowException:
        return
    if note is not None:
        made = made.replace_schema_metadata({b"huggingface": note})
    pq.write_table(made, path, row_group_size=2)
    path.write_bytes(path.read_bytes()[:cut])
    for stream in (False, True):
        usable_or_one_line(path, cond=cond, skip_bad=skip, stream=stream)
