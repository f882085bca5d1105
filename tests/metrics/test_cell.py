"""The digit features and their file; all figures of a cell, on real images and on bad ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.core.seed import generator
from fewstep.data import Digits
from fewstep.errors import DataError, FolderError, NonFiniteError, ShapeError
from fewstep.metrics import (
    DigitsFeatures,
    FeatureOutput,
    Reference,
    digits_features,
    extract,
    frechet_distance,
    kernel_distance,
    measure,
    moments,
    paired_rms,
)
from fewstep.metrics.digits_features import FILE, SHAPES

Split = tuple[Tensor, Tensor]


def digits(split: str) -> Split:
    data = Digits(split)
    return data.batch(torch.arange(len(data)))


def small() -> tuple[Split, Split]:
    """Enough to train something in half a second, for the tests of the file."""
    (x, labels), (other, other_labels) = digits("train"), digits("held-out")
    return (x[:200], labels[:200]), (other[:50], other_labels[:50])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def features(folder: Path) -> DigitsFeatures:
    return digits_features(folder, digits("train"), digits("held-out"))


@pytest.fixture(scope="module")
def reference(features: DigitsFeatures) -> Reference:
    return Reference.build(digits("train")[0], features)


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small")
    digits_features(path, *small())
    return path


def test_held_out_accuracy(features: DigitsFeatures, folder: Path) -> None:
    """0.983 to 0.990 over four seeds."""
    x, labels = digits("held-out")
    right = features(x).logits.argmax(1) == labels
    assert features.held_out_accuracy == pytest.approx(float(right.double().mean()), abs=1e-12)
    assert features.held_out_accuracy >= 0.97
    metadata = _metadata(folder)
    assert float(metadata["held_out_accuracy"]) == features.held_out_accuracy
    assert metadata["seed"] == "0"


def test_loaded_back_bit_equal(features: DigitsFeatures, folder: Path) -> None:
    written = (folder / FILE).stat().st_mtime_ns
    again = digits_features(folder, digits("train"), digits("held-out"))
    assert (folder / FILE).stat().st_mtime_ns == written
    assert again.sha256 == features.sha256
    assert again.held_out_accuracy == features.held_out_accuracy
    x = digits("held-out")[0]
    for a, b in zip(features(x), again(x), strict=True):
        assert torch.equal(a, b)


def test_training_depends_on_its_seed_alone(small_folder: Path, tmp_path: Path) -> None:
    """Not on the number of threads, nor on the global generator, and it touches neither."""
    first = digits_features(small_folder, *small())
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        torch.rand(3)
        state = torch.get_rng_state()
        again = digits_features(tmp_path / "again", *small())
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    other = digits_features(tmp_path / "other", *small(), seed=1)
    assert first.sha256 == again.sha256 != other.sha256
    # safetensors writes its metadata in no fixed order, so the bytes of the files may differ.
    assert _metadata(small_folder) == _metadata(tmp_path / "again") != _metadata(tmp_path / "other")


def _metadata(folder: Path) -> dict[str, str]:
    with safe_open(folder / FILE, framework="pt") as file:
        return dict(file.metadata())


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _cut_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("this is not a safetensors file at all")


def _foreign(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)


def _flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def _missing_weight(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({"conv1.bias": torch.zeros(32)}, path, metadata)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_cut, "cannot be read"),
        (_cut_in_the_header, "cannot be read"),
        (_empty, "cannot be read"),
        (_text, "cannot be read"),
        (_folder, "cannot be read"),
        (_foreign, "kind = nothing"),
        (_flipped, "is damaged"),
        (_missing_weight, "is damaged"),
    ],
)
def test_a_spoilt_file_is_named(
    spoil: Callable[[Path], None], message: str, small_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / FILE
    path.write_bytes((small_folder / FILE).read_bytes())
    spoil(path)
    with pytest.raises(FolderError, match=message) as caught:
        digits_features(tmp_path, *small())
    message = str(caught.value)
    assert str(path) in message
    assert "emove" in message
    assert "\n" not in message


def test_other_data_or_another_seed_is_refused(small_folder: Path) -> None:
    (x, labels), held_out = small()
    with pytest.raises(FolderError, match="data_sha256"):
        digits_features(small_folder, (x.flip(0), labels), held_out)
    with pytest.raises(FolderError, match="seed = 0; here it must be 3"):
        digits_features(small_folder, *small(), seed=3)


def test_nothing_is_left_where_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FolderError, match="No space left"):
        digits_features(tmp_path, *small())
    assert list(tmp_path.iterdir()) == []


def test_the_features_see_shapes_and_batches_as_told(features: DigitsFeatures) -> None:
    x = digits("held-out")[0][:7]
    whole = features(x)
    assert whole.features.shape == (7, 64)
    assert whole.logits.shape == (7, 10)
    assert set(features._weights) == set(SHAPES)
    parts = extract(features, x, batch_size=2)
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)
    with pytest.raises(ShapeError, match="take \\(B, 1, 8, 8\\)"):
        features(torch.zeros(2, 3, 8, 8))
    with pytest.raises(DataError, match="at least 1"):
        extract(features, x[:0])
    with pytest.raises(DataError, match="at least 1"):
        extract(features, x, batch_size=0)


def test_distances_of_real_images_and_noise(features: DigitsFeatures, reference: Reference) -> None:
    """Seed 0: held out 1.075, noise 54.5; over four seeds 0.98 to 1.08 and 54 to 82."""
    x, labels = digits("held-out")
    real = measure(x, labels, features=features, reference=reference)
    assert 0.7 < real["fd_digits"] < 1.5
    assert real["score"] > 6.5
    assert real["rms_to_teacher"] is real["fd_to_teacher"] is None
    noise = torch.randn((2000, 1, 8, 8), generator=generator("cpu", 0, "pure noise"))
    got = measure(noise, torch.arange(2000) % 10, features=features, reference=reference)
    assert 35 < got["fd_digits"] < 100
    assert got["accuracy"] < 0.2


def test_class_averages_fool_the_classifier_and_not_the_rest(
    features: DigitsFeatures, reference: Reference
) -> None:
    x, labels = digits("train")
    asked = torch.arange(500) % 10
    averages = torch.stack([x[labels == k].mean(0) for k in range(10)])[asked]
    got = measure(averages, asked, features=features, reference=reference)
    real = measure(*digits("held-out"), features=features, reference=reference)
    assert got["accuracy"] == 1.0
    assert got["score"] > real["score"]
    assert got["variance"] == 0
    assert got["fd_digits"] > 10 * real["fd_digits"]


def test_measure_is_each_figure(features: DigitsFeatures, reference: Reference) -> None:
    x, labels = digits("held-out")
    moved = x * 0.9
    theirs = moments(features(moved).features)
    shared: Any = {"features": features, "reference": reference}
    got = measure(x, labels, **shared, teacher_samples=moved, teacher_moments=theirs)
    names = ["fd_digits", "kd_digits", "precision", "recall", "score", "accuracy"]
    assert list(got) == [*names, "variance", "nearest", "rms_to_teacher", "fd_to_teacher"]
    out = features(x)
    known = features(digits("train")[0]).features
    assert got["kd_digits"] == pytest.approx(kernel_distance(out.features, known), rel=1e-6)
    assert 0.5 < got["precision"] <= 1.0
    assert 0.5 < got["recall"] <= 1.0
    assert got["fd_digits"] == pytest.approx(
        frechet_distance(moments(features(digits("train")[0]).features), moments(out.features)),
        rel=1e-4,
    )
    assert got["rms_to_teacher"] == paired_rms(x, moved) > 0
    apart = frechet_distance(moments(out.features), theirs)
    assert got["fd_to_teacher"] == pytest.approx(apart, rel=1e-4)
    assert got["accuracy"] == features.held_out_accuracy
    assert all(isinstance(v, float) and math.isfinite(v) for v in got.values())


class Halves:
    """Features of a user: the two halves of an image, under a name of their own."""

    name = "halves"
    sha256 = "0"
    num_classes = None

    def __call__(self, x: Tensor) -> FeatureOutput:
        halves = x.flatten(1).unflatten(1, (2, -1)).mean(-1)
        return FeatureOutput(halves, halves)


def test_the_distance_is_named_after_its_features(features: DigitsFeatures) -> None:
    x, labels = digits("held-out")
    reference = Reference.build(digits("train")[0], Halves())
    got = measure(x, labels, features=Halves(), reference=reference)
    assert "fd_halves" in got
    assert got["accuracy"] is None
    assert got["score"] > 1.0
    assert not [key for key in got if key.startswith("fid")]
    with pytest.raises(DataError, match="'halves' and the features are 'digits'"):
        measure(x, labels, features=features, reference=reference)


def test_samples_that_are_not_finite_are_counted(
    features: DigitsFeatures, reference: Reference
) -> None:
    x, labels = digits("held-out")
    bad = x.clone()
    bad[3, 0, 1, 1] = math.nan
    bad[9] = math.inf
    with pytest.raises(NonFiniteError, match="2 of 300 samples"):
        measure(bad, labels, features=features, reference=reference)
    with pytest.raises(NonFiniteError, match="2 of 300 teacher samples"):
        measure(x, labels, features=features, reference=reference, teacher_samples=bad)


class Same:
    """The images themselves as features."""

    name, sha256, num_classes = "same", "0", None

    def __call__(self, x: Tensor) -> FeatureOutput:
        return FeatureOutput(x.flatten(1), None)


def test_the_distance_of_two_gaussians_to_each_other_in_closed_form() -> None:
    """|difference of means|^2 + |difference of deviations|^2, where covariances are diagonal."""
    draws = torch.randn((50, 4), generator=generator("cpu", 0, "gaussians"), dtype=torch.float64)
    draws -= draws.mean(0)
    unit = draws @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(draws.T)).T)
    means, deviations = torch.tensor([0.5, 0.0, -0.25, 1.0]), torch.tensor([1.0, 2.0, 0.5, 3.0])
    ours = (unit * deviations + means).float().view(50, 1, 2, 2)
    got = measure(
        ours,
        None,
        features=Same(),
        reference=Reference.build(ours, Same()),
        teacher_moments=moments(unit),
    )
    want = float(means.square().sum() + (deviations - 1).square().sum())
    assert got["fd_to_teacher"] == pytest.approx(want, rel=1e-5)
    assert got["fd_same"] == pytest.approx(0.0, abs=1e-5)
