"""One's own images: one schema from parquet, folders and `datasets`; what is wrong is named."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.data import DataConfig, Images, augment, epochs, indices, open_dataset, uniform
from fewstep.errors import DataError

NAMES = ["cat", "dog"]
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
LABELS = [i % 2 for i in range(12)]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def table() -> datasets.Dataset:
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES))
    rows = {"image": [{"bytes": png(p), "path": None} for p in PIXELS], "label": LABELS}
    return datasets.Dataset.from_dict(rows, features=features)


def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "pets.parquet"
    table().to_parquet(path)
    return path


def folder(tmp_path: Path) -> Path:
    for i, label in enumerate(LABELS):
        path = tmp_path / "pets" / NAMES[label] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(PIXELS[i]))
    return tmp_path / "pets"


def saved(tmp_path: Path) -> Path:
    table().save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def config(path: Path, **more: object) -> DataConfig:
    return DataConfig.model_validate({"name": str(path), "held_out": 0.0, **more})


@pytest.mark.parametrize("make", [parquet, folder, saved])
def test_every_kind_of_source_gives_the_same_images(make: object, tmp_path: Path) -> None:
    data = open_dataset(config(make(tmp_path)))  # type: ignore[operator]
    assert (len(data), data.shape, data.num_classes) == (12, (3, 6, 6), 2)
    assert data.class_names == ("cat", "dog")
    x, labels = data.batch(torch.arange(12))
    expected = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 127.5 - 1
    # A folder is read class by class.
    order = sorted(range(12), key=lambda i: LABELS[i]) if make is folder else list(range(12))
    torch.testing.assert_close(x, expected[order], rtol=0, atol=1e-6)
    assert labels.tolist() == [LABELS[i] for i in order]  # type: ignore[union-attr]
    assert (float(x.min()), float(x.max())) >= (-1.0, -1.0)
    assert float(x.max()) <= 1.0


def test_images_are_decoded_once_and_found_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Images(config(parquet(tmp_path)))
    moved = tmp_path / "elsewhere.parquet"
    (tmp_path / "pets.parquet").rename(moved)

    def never(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("fewstep.data.images.decode", never)
    again = Images(config(moved))
    assert again.content_hash() == first.content_hash()
    assert again.batch(torch.arange(3))[0].equal(first.batch(torch.arange(3))[0])


def test_other_settings_or_content_are_another_hash(tmp_path: Path) -> None:
    path = parquet(tmp_path)
    hashes = {
        Images(config(path)).content_hash(),
        Images(config(path, size=3)).content_hash(),
        Images(config(path, channels=1)).content_hash(),
        Images(config(path, held_out=0.3)).content_hash(),
        Images(config(path, held_out=0.3), "held-out").content_hash(),
    }
    assert len(hashes) == 5


def test_shrinking_averages_boxes_of_the_central_square(tmp_path: Path) -> None:
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 4
    for k, name in enumerate(NAMES):
        path = tmp_path / "wide" / name / "0.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(png(wide + np.uint8(k)))
    data = open_dataset(config(tmp_path / "wide", size=2))
    x, _ = data.batch(torch.tensor([0]))
    boxes = torch.from_numpy(wide[:, 2:6]).permute(2, 0, 1).float()
    mean = torch.nn.functional.avg_pool2d(boxes, 2)
    torch.testing.assert_close((x[0] + 1) * 127.5, mean, rtol=0, atol=1.0)


def test_splits_are_disjoint_cover_and_do_not_move(tmp_path: Path) -> None:
    path = parquet(tmp_path)
    train, held = (Images(config(path, held_out=0.4), s) for s in ("train", "held-out"))
    both = torch.cat([train.places, held.places])
    assert both.sort().values.tolist() == list(range(12))
    assert 0 < len(held) < 12


def bad_file(path: Path) -> Path:
    (path / "dog" / "01.png").write_bytes(b"not an image")
    return path


def cut_file(path: Path) -> Path:
    whole = (path / "dog" / "01.png").read_bytes()
    (path / "dog" / "01.png").write_bytes(whole[: len(whole) // 2])
    return path


def odd_size(path: Path) -> Path:
    (path / "dog" / "01.png").write_bytes(png(np.zeros((5, 6, 3), np.uint8)))
    return path


@pytest.mark.parametrize("spoil", [bad_file, cut_file, odd_size])
def test_a_bad_image_is_named_or_left_out_with_a_count(spoil: object, tmp_path: Path) -> None:
    path = spoil(folder(tmp_path))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"dog/01\.png .*--skip-bad"):
        Images(config(path))
    assert not list((tmp_path / "cache" / "images").glob("*")), "nothing half-written"
    data = Images(config(path, skip_bad=True))
    assert (len(data), data.skipped) == (11, 1)


def test_too_small_an_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"00\.png is 6x6, smaller than size = 8"):
        Images(config(folder(tmp_path), size=8))


def test_a_missing_label_is_named_by_its_row(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": png(p), "path": None} for p in PIXELS[:3]], "label": [0, None, 1]}
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    path = tmp_path / "holes.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    with pytest.raises(DataError, match=r"holes\.parquet, row 1 has no label"):
        Images(config(path))


def test_labels_that_are_words_become_classes(tmp_path: Path) -> None:
    rows = {
        "image": [{"bytes": png(p), "path": None} for p in PIXELS[:3]],
        "label": ["wolf", "bear", "wolf"],
    }
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
    path = tmp_path / "words.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    data = Images(config(path))
    assert data.class_names == ("bear", "wolf")
    assert data.batch(torch.arange(3))[1].tolist() == [1, 0, 1]


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    one = tmp_path / "one" / "cat" / "0.png"
    one.parent.mkdir(parents=True)
    one.write_bytes(png(PIXELS[0]))
    flat = tmp_path / "flat" / "0.png"
    flat.parent.mkdir()
    flat.write_bytes(png(PIXELS[0]))
    for path, message in {
        tmp_path / "missing": "neither a data set",
        tmp_path / "empty": "nothing that can be read",
        tmp_path / "notes.txt": "must be parquet",
        one.parents[1]: "two or more",
        flat.parent: "no column of labels",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            open_dataset(config(path))
        assert "\n" not in str(caught.value)


def test_augmentation_is_a_function_of_seed_epoch_and_index() -> None:
    x = torch.randn(64, 3, 8, 8)
    epoch, index = torch.arange(64) // 16, torch.arange(64)
    whole = augment(x, 5, epoch, index, flip=True, crop=2)
    some = torch.tensor([40, 3, 17])
    assert augment(x[some], 5, epoch[some], index[some], flip=True, crop=2).equal(whole[some])
    assert not augment(x, 6, epoch, index, flip=True, crop=2).equal(whole)
    assert not augment(x, 5, epoch + 1, index, flip=True, crop=2).equal(whole)
    assert augment(x, 5, epoch, index).equal(x)


def test_a_flip_is_a_mirror_and_a_crop_a_shift() -> None:
    x = torch.arange(64.0).reshape(1, 1, 8, 8).expand(500, 1, 8, 8)
    zeros, index = torch.zeros(500, dtype=torch.int64), torch.arange(500)
    flipped = augment(x, 0, zeros, index, flip=True)
    mirrored = [bool(f.equal(a.flip(-1))) for f, a in zip(flipped, x, strict=True)]
    kept = [bool(f.equal(a)) for f, a in zip(flipped, x, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 200 < sum(mirrored) < 300
    padded = torch.nn.functional.pad(x[:1], (1, 1, 1, 1), mode="reflect")[0, 0]
    windows = {
        padded[i : i + 8, j : j + 8].contiguous().numpy().tobytes()
        for i in range(3)
        for j in range(3)
    }
    shifted = {a[0].numpy().tobytes() for a in augment(x, 0, zeros, index, crop=1)}
    assert shifted == windows


def test_the_hash_is_uniform() -> None:
    u = uniform(3, "test", torch.arange(20000), torch.zeros(20000, dtype=torch.int64))
    counts = torch.histc(u, 20, 0.0, 1.0)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 43.8  # chi squared, 19 degrees: 0.001
    assert abs(float(torch.corrcoef(torch.stack([u[1:], u[:-1]]))[0, 1])) < 0.03


def test_parts_and_epochs_join_to_the_whole_batch() -> None:
    whole = indices(0, 7, 12, 50), epochs(7, 12, 50)
    parts = [
        (indices(0, 7, 4, 50, rank=r, world=3), epochs(7, 4, 50, rank=r, world=3)) for r in range(3)
    ]
    assert torch.cat([p[0] for p in parts]).equal(whole[0])
    assert torch.cat([p[1] for p in parts]).equal(whole[1])
    seen = torch.cat([epochs(u, 12, 50) for u in range(25)])
    assert seen.bincount().tolist() == [50] * 6


def test_a_table_that_does_not_say_what_is_an_image(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    encoded = [png(p) for p in PIXELS]
    structs = [{"bytes": e, "path": None} for e in encoded]
    for name, column in (("plain", encoded), ("struct", structs)):
        pq.write_table(pa.table({"image": column, "label": LABELS}), tmp_path / f"{name}.parquet")
        data = open_dataset(config(tmp_path / f"{name}.parquet"))
        x, labels = data.batch(torch.arange(12))
        assert labels.tolist() == LABELS
        assert x.shape == (12, 3, 6, 6)
