"""Folders: one rule says which files are read, and an account says which are not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.making import cells, named, numbers, opened, parquet, put

from fewstep.data import DataConfig, caption, captions_of, check_data, fill, open_dataset
from fewstep.data.listing import list_folder
from fewstep.errors import DataError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


def tree(root: Path, *files: str) -> Path:
    """Write an image for each path; its number is its place."""
    for k, file in enumerate(files):
        put(root / file, k)
    return root


def metadata(root: Path, rows: list[Any]) -> Path:
    (root / "metadata.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    return root


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["bus/1.png", "car/1.png", "train/1.png"], ["bus", "car", "train"]),
        (["bus/1.png", "test/1.png"], ["bus", "test"]),
        (["bus/a-train.png", "car/train.png", "car/x_test.png"], ["bus", "car", "car"]),
        (["train/bus/1.png", "train/car/2.png", "test/bus/3.png"], ["bus", "car"]),
        (["Train/bus/1.png", "Train/car/2.png", "VAL/bus/3.png", "x.png"], ["bus", "car"]),
        (["data/train/bus/1.png", "data/train/car/2.png", "data/test/bus/3.png"], ["bus", "car"]),
        (["train/bus/1.png", "train/car/1.png"], ["bus", "car"]),
        (["x/bus/1.png", "y/car/1.png"], ["bus", "car"]),
        (["bus/1.png", "bus/old/2.png", "car/3.png"], ["bus", "bus", "car"]),
        (["x/a/1.png", "y/a/1.png"], ["x/a", "y/a"]),
        ([f"{k}/1.png" for k in range(12)], [str(k) for k in [0, 1, 10, 11, *range(2, 10)]]),
    ],
)  # fmt: skip
def test_classes_and_splits_of_folders(files: list[str], names: list[str], tmp_path: Path) -> None:
    data = opened(tree(tmp_path / "set", *files))
    assert named(data) == names
    left = len(files) - len(names)
    assert f"{len(files)} image files seen, {len(names)} used" in data.summary
    assert (f"{left} (" in data.summary) if left else data.summary.endswith("left out: nothing")


def test_numeric_names_are_in_numeric_order(tmp_path: Path) -> None:
    data = opened(tree(tmp_path / "set", *(f"{k}/1.png" for k in range(12))))
    assert data.class_names == tuple(map(str, range(12)))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["test/a/1.png", "val/a/1.png"], "splits test, val, and none of them are called train"),
        (["train/a/1.png", "test/a/1.png", "more/a/1.png"], "beside other folders .more."),
    ],
)
def test_splits_that_are_not_clear_are_refused(files: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        opened(tree(tmp_path / "set", *files))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("files", "read"),
    [
        (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], [0]),
        (["train/0000.parquet", "validation/0000.parquet"], [0]),
        (["train.parquet", "test.parquet", "val-1.parquet"], [0]),
        (["train-00000-of-00002-0123456789abcdef.parquet",
          "train-00001-of-00002-0123456789abcdef.parquet", "test-0.parquet"], [0, 1]),
        (["train-0.parquet", "train-1.parquet"], [0, 1]),
        (["test.parquet"], [0]),
        (["a-train.parquet", "training-set.parquet", "test_images.parquet"], [0, 1, 2]),
        (["u*/a.parquet", "u [2]/b.PQ"], [0, 1]),
    ],
)  # fmt: skip
def test_splits_of_tables_are_the_same_cached_and_streamed(
    files: list[str], read: list[int], stream: bool, tmp_path: Path
) -> None:
    for k, file in enumerate(files):
        image = [{"bytes": c["bytes"], "path": None} for c in cells(2 * k + 2)[2 * k :]]
        parquet(tmp_path / "hub" / file, image, label=[0, 1])
    data = opened(tmp_path / "hub", stream=stream)
    order = sorted(read, key=lambda k: files[k])
    assert numbers(data) == [n for k in order for n in (2 * k, 2 * k + 1)]
    assert ("other splits" in data.summary) == (len(read) < len(files))


def test_tables_that_cannot_be_one_are_refused(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    parquet(hub / "train.parquet", label=[0, 1])
    parquet(hub / "test.parquet", label=[0, 1])
    parquet(hub / "more.parquet", label=[0, 1])
    for stream in (False, True):
        with pytest.raises(DataError, match=r"splits test, train and more\.parquet"):
            opened(hub, stream=stream)
    (hub / "more.parquet").unlink()
    parquet(hub / "train.parquet", label=[0, 1])
    (hub / "test.parquet").unlink()
    parquet(hub / "train_2.parquet", other=[0, 1])
    with pytest.raises(DataError, match=r"has no column 'label' like that of"):
        opened(hub)


def test_paths_mean_themselves_and_links_are_followed_once(tmp_path: Path) -> None:
    root = tree(tmp_path / "u*", "a/1.png", "b [2]/2.png")
    tree(tmp_path / "u12", "a/1.png")
    tree(tmp_path / "elsewhere", "3.png")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    (root / "b [2]" / "gone.png").symlink_to(root / "none")
    (root / "b [2]" / "4.png").symlink_to(root / "a" / "1.png")
    data = opened(root)
    assert named(data) == ["a", "b [2]", "b [2]", "c"]
    assert "1 (a link to a folder that was read already)" in data.summary
    assert "1 (a broken link or a special file)" in data.summary


def test_what_is_in_a_folder_is_never_obeyed(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", "cat/1.png", "dog/2.png")
    tree(tmp_path / "other", "eel/1.png", "fox/2.png")
    (root / "README.md").write_text(f"---\nconfigs:\n- data_dir: {tmp_path / 'other'}\n---\n")
    (root / "set.py").write_text("raise SystemExit('obeyed')")
    (root / "dataset_infos.json").write_text("{")
    (root / ".hidden").mkdir()
    put(root / ".hidden" / "0.png", 9)
    put(root / "__MACOSX" / "0.png", 9)
    os.mkfifo(root / "cat" / "pipe.png")
    (root / "cat" / "folder.png").mkdir()
    data = opened(root)
    assert data.class_names == ("cat", "dog")
    assert "3 (other kinds of files: .md, .json, .py)" in data.summary
    assert list_folder(root).left_out == {"a broken link or a special file": 1}


def test_every_suffix_is_read_whatever_its_case(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", "a/1.JFIF", "a/2.webp", "b/3.TIF", "b/4.avif")
    assert len(opened(root)) == 4


def test_captions_beside_images(tmp_path: Path) -> None:
    root = tree(tmp_path / "10_sks dog", "0.png", "1.png", "2.png", "sub/3.png")
    (root / "0.txt").write_text("\ufeffa <my_token>, o_o\n", encoding="utf-8")
    (root / "1.caption").write_text("one\n\ntwo\n")
    (root / "sub" / "3.txt").write_bytes("drei".encode("utf-16"))
    (root / "notes.txt").write_text("not a caption")
    for cond in ("class", "prompt"):
        data = opened(root, cond=cond)
        assert named(data)[0] == "a <my_token>, o_o"
        assert named(data)[1] in ("one", "two")
        assert named(data)[2] == "drei"
        assert data.class_texts == data.class_names
        assert "3 captions; captions from the text files beside the images" in data.summary
        assert "1 (without a text file beside it)" in data.summary
        assert "1 (other kinds of files: .txt)" in data.summary
    (root / "1.caption").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"1\.caption cannot be read as text: it must be UTF-8"):
        opened(root)
    assert opened(root, skip_bad=True).skipped == 1
    (root / "1.caption").write_text(" \n")
    with pytest.raises(DataError, match=r"1\.png has no caption"):
        opened(root)


def test_files_of_captions_may_have_suffixes_in_upper_case(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", "0.PNG", "1.png")
    (root / "0.TXT").write_text("a cat")
    (root / "1.Caption").write_text("a dog")
    assert named(opened(root)) == ["a cat", "a dog"]
    (root / "0.txt").write_text("a bee")
    (root / "2.txt").write_text("no image")
    assert named(opened(root)) == ["a cat", "a dog"]  # of two, the first in the order of their text


def test_a_column_of_captions_that_is_not_there_is_named(tmp_path: Path) -> None:
    rows = [{"file_name": f"{k}.png", "foo": str(k), "text": "x"} for k in range(2)]
    root = metadata(tree(tmp_path / "set", "0.png", "1.png"), rows)
    for cond in ("class", "prompt"):
        with pytest.raises(DataError, match="no column of the name 'bar'; its columns are foo, te"):
            opened(root, caption="bar", cond=cond)


def test_images_that_change_while_a_process_runs_are_seen(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", "a/0.png", "b/1.png")
    config = DataConfig(name=str(root), size=4, held_out=0.0)
    first = open_dataset(config)
    assert open_dataset(config).content_hash() == first.content_hash()
    put(root / "b" / "2.png", 2)
    second = open_dataset(config)
    assert (len(first), len(second)) == (2, 3)
    assert second.content_hash() != first.content_hash()


def test_of_several_captions_a_hash_chooses_one_and_all_are_used(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", *(f"{k:03d}.png" for k in range(60)))
    rows = [{"file_name": f"{k:03d}.png", "text": ["a", "b", "c"]} for k in range(60)]
    data = opened(metadata(root, rows), cond="prompt")
    counts = [named(data).count(c) for c in "abc"]
    assert sum(counts) == 60
    assert min(counts) > 8
    path = parquet(tmp_path / "t.parquet", text=[["a", "b", "c"]] * 60)
    for stream in (False, True):
        assert named(opened(path, cond="prompt", stream=stream)) == named(data)


def test_one_caption_for_all_will_do_for_prompts_alone(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", text=["a photo of sks dog"] * 3)
    for stream in (False, True):
        assert opened(path, cond="prompt", stream=stream).class_names == ("a photo of sks dog",)
        with pytest.raises(DataError, match="1 class; guidance is between classes"):
            opened(path, stream=stream)


def test_images_without_metadata_are_counted(tmp_path: Path) -> None:
    root = metadata(
        tree(tmp_path / "set", "0.png", "1.png", "2.png"),
        [{"file_name": "1.png", "text": "one"}, {"file_name": "0.png", "text": "zero"}],
    )
    data = opened(root)
    assert named(data) == ["one", "zero"]  # the order of the rows
    assert "1 (not named in metadata.jsonl)" in data.summary
    assert "captions from 'text' of metadata.jsonl" in data.summary


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "holds no rows"),
        ([{"text": "a"}], "line 1 has no file_name"),
        (["x"], "not a JSON object"),
        ([{"file_name": "../set/0.png", "text": "a"}], "inside the folder of metadata.jsonl"),
        ([{"file_name": "/etc/passwd", "text": "a"}], "inside the folder"),
        ([{"file_name": "none.png", "text": "a"}], "no file 'none.png' beside"),
        ([{"file_name": "0.png", "text": 3}], "caption of type int|label"),
        ([{"file_name": "0.png", "text": ["a", 3]}], "no column|caption of type int"),
        ([{"file_name": "0.png", "text": None}], "no column of labels|no caption"),
        ([{"file_name": 3, "text": "a"}], "has no file_name"),
    ],
)
def test_metadata_that_is_wrong_is_named_by_its_line(
    rows: list[Any], says: str, tmp_path: Path
) -> None:
    root = metadata(tree(tmp_path / "set", "0.png", "1.png"), rows)
    with pytest.raises(DataError, match=says) as caught:
        opened(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "\0", '{"file_name": ' + "[" * 100000, "\xff"])
def test_metadata_that_is_no_json(text: str, tmp_path: Path) -> None:
    root = tree(tmp_path / "set", "0.png")
    (root / "metadata.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"metadata\.jsonl"):
        opened(root)


def test_metadata_of_other_kinds(tmp_path: Path) -> None:
    root = tree(tmp_path / "csv", "train/0.png", "train/1.png", "test/2.png")
    (root / "metadata.csv").write_text(
        'file_name,text\ntrain/1.png,"a cat, sitting"\ntrain/0.png,dog\ntest/2.png,eel\n'
    )
    data = opened(root)
    assert named(data) == ["a cat, sitting", "dog"]
    root = tree(tmp_path / "pq", "0.png", "1.png")
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"file_name": ["1.png", "0.png"], "label": [5, 3]})
    pq.write_table(table, root / "metadata.parquet")
    assert named(opened(root)) == ["5", "3"]
    both = tree(tmp_path / "both", "0.png", "1.png")
    (both / "metadata.csv").write_text("file_name,label\n0.png,1\n")
    metadata(both, [{"file_name": "1.png", "label": 2}])
    with pytest.raises(DataError, match="Remove one of them"):
        opened(both)


def test_for_prompts_a_column_of_text_wins_and_for_classes_a_label(tmp_path: Path) -> None:
    texts = ["a <x_1>", "b", "c"]
    path = parquet(tmp_path / "t.parquet", label=[0, 1, 0], text=texts, alt=["u", "v", "u"])
    for stream in (False, True):
        assert named(opened(path, stream=stream)) == ["0", "1", "0"]
        assert named(opened(path, stream=stream, cond="prompt")) == texts
        for key in ("caption", "captions", "label"):
            data = opened(path, stream=stream, cond="prompt", **{key: "alt"})
            assert named(data) == ["u", "v", "u"]
            assert data.class_texts == ("u", "v")
        assert named(opened(path, stream=stream, cond="prompt", label="label")) == ["0", "1", "0"]
        assert named(opened(path, stream=stream, label="alt")) == ["u", "v", "u"]
    root = tree(tmp_path / "set", "great_owl/0.png", "bear/1.png")
    (root / "great_owl" / "0.txt").write_text("an owl_1")
    (root / "bear" / "1.txt").write_text("a bear")
    assert opened(root).class_texts == ("bear", "great owl")
    assert opened(root, cond="prompt").class_texts == ("a bear", "an owl_1")


def test_the_image_column_can_be_named_and_hold_paths(tmp_path: Path) -> None:
    tree(tmp_path / "at", "x/0.png", "x/1.png")
    image = ["x/0.png", str(tmp_path / "at" / "x" / "1.png")]
    structs = [{"bytes": None, "path": p} for p in image]
    for name, column in (("str", image), ("struct", structs)):
        path = parquet(tmp_path / "at" / f"{name}.parquet", column, label=[0, 1])
        for stream in (False, True):
            assert numbers(opened(path, stream=stream)) == [0, 1]
        before = opened(path).content_hash()
        put(tmp_path / "at" / "x" / "0.png", 99)
        assert opened(path).content_hash() != before, "a referenced file is part of the data"
        put(tmp_path / "at" / "x" / "0.png", 0)
    for value, says in [
        ("none.png", "only|the path 'none.png', and there is no such file"),
        ("../at/x/0.png", "leaves"),
        ("https://x/0.png", "nothing is fetched"),
        (None, "row 0 has no image"),
    ]:
        path = parquet(tmp_path / "at" / "wrong.parquet", [value, "x/1.png"], label=[0, 1])
        for stream in (False, True):
            with pytest.raises(DataError, match=says) as caught:
                numbers(opened(path, stream=stream))
            assert "whole image" not in str(caught.value)
    two = parquet(tmp_path / "two.parquet", label=[0, 1], other=[c["bytes"] for c in cells(4)[2:]])
    assert numbers(opened(two)) == [0, 1]
    assert numbers(opened(two, image="other")) == [2, 3]
    with pytest.raises(DataError, match="no column of the name 'none'"):
        opened(two, image="none")
    with pytest.raises(DataError, match="holds neither image files nor their paths"):
        opened(two, image="label")


def test_archives_and_other_files_say_what_to_do(tmp_path: Path) -> None:
    for name, says in [
        ("a/0001.tar", r"tar -xf 0001\.tar.*WebDataset"),
        ("b/data.zip", r"unzip data\.zip"),
    ]:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
        for path in ((tmp_path / name).parent, tmp_path / name):
            with pytest.raises(DataError, match=says):
                opened(path)
    (tmp_path / "t.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"must be parquet, not \.csv"):
        opened(tmp_path / "t.csv")
    with pytest.raises(DataError, match="nothing is fetched"):
        opened(Path("hf://datasets/x"))
    with pytest.raises(DataError, match=r"not a path that can be read|neither"):
        opened(tmp_path / ("n" * 300))
    with pytest.raises(DataError, match="holds no parquet files"):
        opened(tree(tmp_path / "set", "a/1.png", "b/1.png"), stream=True)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("dataset_dict.json", "[]"),
        ("dataset_dict.json", '{"splits": ["../up"]}'),
        ("dataset_dict.json", '{"splits": "train"}'),
        ("dataset_dict.json", '{"splits": ["train"]}'),
        ("state.json", "{"),
        ("state.json", '{"_data_files": 3}'),
        ("state.json", '{"_data_files": [{"filename": "/etc/passwd"}]}'),
        ("state.json", '{"_data_files": [{"filename": "none.arrow"}]}'),
    ],
)
def test_a_saved_table_of_another_shape_is_one_line(file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    for stream in (False, True):
        with pytest.raises(DataError) as caught:
            opened(tmp_path, stream=stream)
        assert "\n" not in str(caught.value)


def test_captions_are_used_as_written_and_names_as_words() -> None:
    index = torch.tensor([0])
    assert captions_of(["{}"], ["<my_token>, o_o"], index) == ["<my_token>, o_o"]
    assert fill("a photo of a {}", "owl_1") == "a photo of an owl_1"
    assert caption("a photo of a {}", "great_owl") == "a photo of a great owl"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"size": 0}, "data.size"),
        ({"size": 10**6}, "data.size"),
        ({"size": float("nan")}, "data.size"),
        ({"size": 8, "crop": 8}, "crop = 8 must be smaller than size = 8"),
        ({"held_out": 1.0}, "data.held_out"),
        ({"held_out": float("nan")}, "data.held_out"),
        ({"max_pixels": 2**40}, "data.max_pixels"),
        ({"background": "#zz"}, "not a colour"),
        ({"background": "#00000000"}, "not a colour"),
        ({"name": ""}, "data.name"),
        ({"name": "a\0b"}, "zero byte"),
        ({"captions": "a", "caption": "b"}, "name two columns"),
        ({"captions": ["a cat"]}, "must have one {}"),
        ({"cond": "text"}, "data.cond"),
    ],
)
def test_every_setting_has_bounds(given: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        check_data(given)
    assert "\n" not in str(caught.value)


def test_a_text_names_the_column_of_captions_or_is_a_template() -> None:
    column = DataConfig.model_validate({"captions": "alt"})
    assert (column.caption, column.captions) == ("alt", ("{}",))
    assert DataConfig.model_validate(column.model_dump()) == column
    template = DataConfig.model_validate({"captions": "a {}"})
    assert (template.caption, template.captions) == (None, ("a {}",))


def test_a_crop_larger_than_the_images_is_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", "a/1.png", "b/1.png")
    with pytest.raises(DataError, match="crop must be smaller than the images, got 4"):
        opened(root, size=None, crop=4)


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path / "set", "a/1.png", "b/2.png")
    real = os.scandir

    def refused(path: Any) -> Any:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match="b cannot be read: Permission denied"):
        opened(root)


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", "a/1.png", "b/2.png")
    opened(root)
    (folder,) = (tmp_path / "cache" / "images").iterdir()
    for file, data in (("images.u8", b""), ("labels.i64", b"12345678"), ("meta.json", b"{")):
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(data)
        with pytest.raises(DataError, match=r"is damaged\. Remove it"):
            opened(root)
        (folder / file).write_bytes(whole)
