"""Buckets: images of several sizes, dealt one size an update, found again by counting."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.data import Buckets, DataConfig, check_data, examples, open_dataset
from fewstep.data.buckets import nearest
from fewstep.data.decode import cover
from fewstep.errors import DataError

SIZES = ((8, 8), (8, 16), (16, 8))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """12 images as high as wide, 6 twice as wide, 3 twice as high; each of one shade of grey."""
    shapes = [(10, 10)] * 12 + [(10, 20)] * 6 + [(24, 12)] * 3
    for number, (height, width) in enumerate(shapes):
        folder = tmp_path / "pictures" / ("odd" if number % 2 else "even")
        folder.mkdir(parents=True, exist_ok=True)
        shade = np.full((height, width, 3), 10 * number, np.uint8)
        Image.fromarray(shade).save(folder / f"{number:02d}.png")
    return tmp_path / "pictures"


def opened(pictures: Path, **settings: object) -> Buckets:
    given = {"size": 8, "buckets": SIZES, "held_out": 0.0, **settings}
    found = open_dataset(DataConfig.model_validate({"name": str(pictures), **given}))
    assert isinstance(found, Buckets)
    return found


def test_the_nearest_bucket_is_of_the_same_shape_and_covered() -> None:
    assert nearest((100, 100), SIZES) == 0
    assert nearest((100, 190), SIZES) == 1
    assert nearest((100, 130), SIZES) == 0
    assert nearest((150, 100), SIZES) == 2
    # Never enlarged: the wide one would need 16 pixels.
    assert nearest((8, 15), SIZES) == 0
    assert nearest((7, 100), SIZES) is None
    # Of one shape, the largest that the image covers.
    same = ((8, 8), (32, 32), (16, 16))
    assert [nearest((side, side), same) for side in (8, 16, 40)] == [0, 2, 1]


@pytest.mark.parametrize("given", [(33, 20), (20, 33), (49, 49), (8, 16), (17, 16)])
def test_an_image_is_covered_and_cropped_to_its_centre(given: tuple[int, int]) -> None:
    """The middle column of an image stays in the middle, and black margins are cut off evenly."""
    pixels = np.zeros((*given, 3), np.uint8)
    pixels[:, given[1] // 2 - 2 : given[1] // 2 + 2] = 255
    out = np.asarray(cover(Image.fromarray(pixels), (8, 16)), np.float32)
    assert out.shape == (8, 16, 3)
    middle = (out[0, :, 0] * np.arange(16)).sum() / out[0, :, 0].sum()
    assert abs(middle - 7.5) < 1.0


def test_each_image_is_in_one_bucket(pictures: Path) -> None:
    data = opened(pictures)
    assert [part.shape for part in data.parts] == [(3, 8, 8), (3, 8, 16), (3, 16, 8)]
    assert [len(part) for part in data.parts] == [12, 6, 3]
    assert data.shape == (3, 8, 8)
    assert "height x width of the training images: 8x8: 12, 8x16: 6, 16x8: 3" in data.summary
    seen = {}
    for number in range(len(data)):
        x, label = data.batch(torch.tensor([number]))
        shade = round((float(x.mean()) + 1) * 127.5)
        seen[shade // 10] = x.shape[2:]
        assert data.class_names[int(label)] == ("odd" if shade // 10 % 2 else "even")
    assert Counter(seen.values()) == {(8, 8): 12, (8, 16): 6, (16, 8): 3}
    with pytest.raises(DataError, match="must be of one size"):
        data.batch(torch.tensor([0, 12]))
    assert tuple(data.batch(torch.tensor([data.largest()]))[0].shape[2:]) in {(8, 16), (16, 8)}


def test_splits_are_those_of_images_of_one_size(pictures: Path) -> None:
    data = opened(pictures, held_out=0.3)
    plain = DataConfig(name=str(pictures), size=8, held_out=0.3)
    assert len(data) == len(open_dataset(plain))
    held = open_dataset(plain.model_copy(update={"buckets": SIZES}), "held-out")
    assert len(held) == len(open_dataset(plain, "held-out")) == 21 - len(data)


def test_other_buckets_are_other_data(pictures: Path) -> None:
    once = opened(pictures).content_hash()
    assert opened(pictures).content_hash() == once
    assert opened(pictures, buckets=SIZES[:2]).content_hash() != once
    assert open_dataset(DataConfig(name=str(pictures), size=8)).content_hash() != once


def test_a_batch_has_one_size_and_is_dealt_to_all_parts(pictures: Path) -> None:
    data = opened(pictures)
    drawn = set()
    for update in range(40):
        whole, epoch = examples(data, 5, update, 4, part=0, parts=1)
        shape = data.batch(whole)[0].shape
        drawn.add(tuple(shape[2:]))
        dealt = [examples(data, 5, update, 2, part=part, parts=2) for part in range(2)]
        assert torch.equal(torch.cat([index for index, _ in dealt]), whole)
        assert torch.equal(torch.cat([number for _, number in dealt]), epoch)
    assert drawn == set(SIZES)


def test_every_example_is_seen_equally_often(pictures: Path) -> None:
    data = opened(pictures)
    for rounds in (1, 2):
        seen: Counter[int] = Counter()
        for update in range(rounds * len(data)):
            seen.update(examples(data, 0, update, 4, part=0, parts=1)[0].tolist())
        assert set(seen.values()) == {4 * rounds}
        assert len(seen) == len(data)
    # A pure function: asked again in another order, it answers the same.
    fresh = opened(pictures)
    for update in (33, 2, 20):
        again = examples(fresh, 0, update, 4, part=0, parts=1)[0]
        assert torch.equal(again, examples(data, 0, update, 4, part=0, parts=1)[0])


def test_an_image_smaller_than_all_buckets_is_named(pictures: Path) -> None:
    Image.new("RGB", (7, 30)).save(pictures / "odd" / "small.png")
    with pytest.raises(DataError, match=r"small.png is 7x30, smaller than all buckets"):
        opened(pictures)
    assert len(opened(pictures, skip_bad=True)) == 21


def test_the_digits_have_no_buckets() -> None:
    with pytest.raises(DataError, match="buckets must be left out for digits"):
        open_dataset(DataConfig(name="digits", size=8, buckets=((8, 8),)))


def test_a_damaged_cache_is_named(pictures: Path, tmp_path: Path) -> None:
    from fewstep.data import images

    opened(pictures)
    (meta,) = (tmp_path / "cache" / "images").glob("*/meta.json")
    kept = json.loads(meta.read_text())
    assert kept["shapes"] == [[12, 3, 8, 8], [6, 3, 8, 16], [3, 3, 16, 8]]
    np.zeros(21, np.int64).tofile(meta.parent / "buckets.i64")
    images._cached.cache_clear()
    with pytest.raises(DataError, match="is damaged"):
        opened(pictures)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": None}, "buckets need size beside them"),
        ({"stream": True}, "buckets need stream=false"),
        ({"buckets": [[8, 8], [8, 8]]}, "buckets must differ"),
        ({"buckets": [[8, 0]]}, "greater than or equal to 1"),
        ({"crop": 8}, "must be smaller than"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        check_data({"name": "x", "size": 8, "buckets": [list(s) for s in SIZES], **settings})
