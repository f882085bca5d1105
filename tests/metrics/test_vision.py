"""Features from transformers folders: one trained here, others', and ones that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep.core.seed import generator
from fewstep.errors import DataError, FolderError, ShapeError
from fewstep.metrics import VisionFeatures, train_features, vision_features


class Stripes:
    """Images of two classes: stripes across, stripes down, in noise."""

    num_classes = 2

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        wave = torch.sin(torch.arange(8.0) * 2)[None, :].expand(8, 8)
        both = torch.stack([wave, wave.T])[:, None].expand(-1, 3, -1, -1)
        labels = index % 2
        noise = torch.stack(
            [torch.randn(3, 8, 8, generator=generator("cpu", int(i))) for i in index]
        )
        return (0.6 * both[labels] + 0.2 * noise).clamp(-1, 1), labels

    def content_hash(self) -> str:
        return f"stripes {self.count}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features") / "stripes"


@pytest.fixture(scope="module")
def trained(folder: Path) -> VisionFeatures:
    return train_features(
        folder, Stripes(256), Stripes(64), name="stripes", epochs=3, flip=False, progress=False
    )


X = Stripes(10).batch(torch.arange(10))[0]


def test_it_learns_and_says_how_well(trained: VisionFeatures, folder: Path) -> None:
    assert trained.held_out_accuracy is not None
    assert trained.held_out_accuracy > 0.9
    card = json.loads((folder / "features.json").read_text())
    assert card["held_out_accuracy"] == trained.held_out_accuracy
    assert card["data_sha256"] == "stripes 256"
    assert trained.num_classes == 2
    assert trained(X).features.shape == (10, 128)


def test_the_folder_gives_the_same_features(trained: VisionFeatures, folder: Path) -> None:
    again = vision_features(folder)
    assert (again.name, again.sha256) == (trained.name, trained.sha256)
    a, b = trained(X), again(X)
    assert a.features.equal(b.features)
    assert a.logits is not None
    assert b.logits is not None
    assert a.logits.equal(b.logits)
    torch.testing.assert_close(again(X[3:5]).features, a.features[3:5])


def test_transformers_opens_the_folder_too(trained: VisionFeatures, folder: Path) -> None:
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True).eval()
    shown = torch.nn.functional.interpolate(X, (32, 32), mode="bilinear", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values=shown).logits, trained(X).logits)


def test_a_folder_that_was_altered_is_refused(folder: Path, trained: VisionFeatures) -> None:
    config = folder / "preprocessor_config.json"
    kept = config.read_text()
    config.write_text(kept.replace("0.5", "0.4"))
    try:
        with pytest.raises(FolderError, match="damaged"):
            vision_features(folder)
    finally:
        config.write_text(kept)


def test_a_vision_transformer_of_ones_own(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = ViTModel(
            ViTConfig(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                image_size=16, patch_size=8,
            ),
            add_pooling_layer=False,
        )  # fmt: skip
    model.save_pretrained(tmp_path / "My ViT")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "My ViT")
    features = vision_features(tmp_path / "My ViT")
    assert features.name == "my-vit"
    assert features.num_classes is None
    out = features(X)
    assert out.logits is None
    assert out.features.shape == (10, 16)
    assert features(X[:, :1]).features.shape == (10, 16)
    with pytest.raises(ShapeError, match=r"take \(B, 3, H, W\)"):
        features(X[:, :2])


def test_what_is_no_folder_of_features(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FolderError, match=r"config.json is missing"):
        vision_features(tmp_path)
    with pytest.raises(DataError, match="'my-stripes'"):
        train_features(tmp_path / "a", Stripes(8), Stripes(2), name="My stripes!")
    with pytest.raises(DataError, match="hold some out"):
        train_features(tmp_path / "a", Stripes(8), Stripes(0), name="a")
    with pytest.raises(FolderError, match="not empty"):
        train_features(folder, Stripes(8), Stripes(2), name="a")
    assert not (tmp_path / "a").exists()
