"""The published Inception: its shape, its resizing, what is refused. Its equality with
torch-fidelity's on the same weights is shown by compare_inception.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fewstep.errors import FolderError, ShapeError
from fewstep.metrics import InceptionFeatures, Reference, distance_names, measure, open_features
from fewstep.metrics.inception import Inception, resize


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        state = Inception().state_dict()
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, path)
    return path


def test_it_has_the_size_of_the_published_one() -> None:
    # Inception v3 without its side head has 23,834,568 parameters for 1,000 classes.
    model = Inception()
    assert sum(p.numel() for p in model.parameters()) == 23_834_568 + 8 * 2049


def test_pixels_stand_where_tensorflow_1_puts_them() -> None:
    ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    got = resize(ramp, 8)[0, 0, 0]
    assert got.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0]
    assert resize(ramp, 2)[0, 0, 0].tolist() == [0.0, 2.0]


def test_its_distances_are_called_fid(weights: Path) -> None:
    features = open_features(weights)
    assert isinstance(features, InceptionFeatures)
    assert distance_names(features) == ("fid", "kid")
    g = torch.Generator().manual_seed(0)
    x = torch.rand(6, 3, 32, 32, generator=g) * 2 - 1
    out = features(x)
    assert out.features.shape == (6, 2048)
    assert out.logits is not None
    assert out.logits.shape == (6, 1008)
    torch.testing.assert_close(features(x[2:3]).features, out.features[2:3], rtol=1e-4, atol=1e-5)
    got = measure(x, torch.arange(6) % 2, features=features, reference=Reference.build(x, features))
    assert abs(got["fid"]) < 1e-3
    assert got["accuracy"] is None
    assert [k for k in got if k.startswith("fd_")] == ["fd_to_teacher"]
    with pytest.raises(ShapeError, match="Inception takes"):
        features(x[:, :2])


def test_other_weights_are_refused(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    save_file(state, tmp_path / "same.safetensors")
    assert InceptionFeatures(tmp_path / "same.safetensors")
    first = "Mixed_5b.branch1x1.conv.weight"
    short = {k: v for k, v in state.items() if k != first}
    torch.save(short, tmp_path / "short.pth")
    with pytest.raises(FolderError, match=f"lacks '{first}', and 0 more"):
        InceptionFeatures(tmp_path / "short.pth")
    torch.save({**state, "fc.bias": torch.zeros(1000)}, tmp_path / "wide.pth")
    with pytest.raises(FolderError, match=r"fc.bias has shape \(1000,\), not \(1008,\)"):
        InceptionFeatures(tmp_path / "wide.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(FolderError, match="no state dict"):
        InceptionFeatures(tmp_path / "list.pth")
    (tmp_path / "cut.pth").write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(FolderError, match="cannot be read as weights"):
        InceptionFeatures(tmp_path / "cut.pth")
    with pytest.raises(FolderError, match="is missing"):
        InceptionFeatures(tmp_path / "none.pth")
