"""The file of a cell's images: the first ones as they are, the rest of a reference as bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.measure import images
from fewstep.measure.images import ImageFile, image_writer
from fewstep.pixels import from_bytes, to_bytes

X = torch.linspace(-1.4, 1.4, 9 * 6).view(9, 1, 2, 3)


def written(path: Path, *, whole: bool) -> ImageFile:
    with image_writer(path, len(X), X.shape[1:], whole) as writer:
        for part in X.split(4):
            writer.add(part)
    return ImageFile(path)


@pytest.mark.parametrize("most", [3, 5, 9, 20])
def test_all_images_of_a_reference_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(images, "KEPT", most)
    file = written(tmp_path / "x", whole=True)
    assert (file.count, file.is_whole) == (9, True)
    assert torch.equal(file.first(), X[:most])
    kept = X if most >= 9 else from_bytes(to_bytes(X))
    assert torch.equal(file.part(2, 7), kept[2:7])
    assert torch.equal(file.alike(X), kept)
    read = load_file(tmp_path / "x")  # any reader of safetensors
    assert torch.equal(read["images"], X[:most])
    assert ("bytes" in read) == (most < 9)


def test_of_other_cells_the_first_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "KEPT", 5)
    file = written(tmp_path / "x", whole=False)
    assert file.count == 5
    assert torch.equal(file.first(), X[:5])


def test_files_of_earlier_versions_and_damaged_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "KEPT", 5)
    save_file({"images": X}, tmp_path / "old")  # all as they are, however many
    old = ImageFile(tmp_path / "old")
    assert (old.count, len(old.first())) == (9, 5)
    assert torch.equal(old.part(4, 9), X[4:])
    assert torch.equal(old.alike(X), X)
    for name, data in (("cut", (tmp_path / "old").read_bytes()[:-1]), ("empty", b"")):
        (tmp_path / name).write_bytes(data)
        assert not ImageFile(tmp_path / name).is_whole
    assert not ImageFile(tmp_path / "nowhere").is_whole
    with image_writer(tmp_path / "none", 0, (1, 2, 3)):
        pass
    none = ImageFile(tmp_path / "none")
    assert (none.is_whole, none.count, len(none.first())) == (True, 0, 0)
