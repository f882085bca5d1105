"""What cannot be measured is None with a reason; features of images that have no classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep.core.seed import generator
from fewstep.errors import DataError, FolderError
from fewstep.metrics import (
    FeatureOutput,
    Reference,
    measure,
    measure_all,
    no_figures,
    train_features,
    vision_features,
)
from fewstep.metrics.rotations import TASK, Rotations


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator("cpu", seed, "missing"))


class Plain:
    """Two features and two logits of an image; `classes` and `broken` vary what is known."""

    name = "plain"
    sha256 = "0"

    def __init__(self, classes: int | None = 2, logits: bool = True, value: float = 0.0) -> None:
        self.num_classes, self.logits, self.value = classes, logits, value

    def __call__(self, x: Tensor) -> FeatureOutput:
        halves = x.flatten(1).unflatten(1, (2, -1)).mean(-1) + self.value
        return FeatureOutput(halves, halves if self.logits else None)


TRAIN = normal(0, 30, 1, 2, 2)
FIGURES = {"fd_plain", "kd_plain", "precision", "recall", "score", "accuracy", "variance",
           "nearest", "rms_to_teacher", "fd_to_teacher"}  # fmt: skip
TO_TEACHER = {"rms_to_teacher", "fd_to_teacher"}
ONE_EACH, PAIRS = torch.arange(8) % 8, torch.arange(8) % 2


@pytest.mark.parametrize(
    ("features", "count", "labels", "train", "missing"),
    [
        (Plain(), 8, PAIRS, TRAIN, set()),
        (Plain(), 8, ONE_EACH, TRAIN, {"variance", "accuracy"}),
        (Plain(), 8, None, TRAIN, {"variance", "accuracy"}),
        (Plain(), 3, PAIRS[:3], TRAIN, {"precision", "recall", "variance"}),
        (Plain(), 1, PAIRS[:1], TRAIN,
         {"fd_plain", "kd_plain", "precision", "recall", "variance"}),
        (Plain(), 8, PAIRS, TRAIN[:3], {"precision", "recall"}),
        (Plain(), 8, PAIRS, TRAIN[:1], {"fd_plain", "kd_plain", "precision", "recall"}),
        (Plain(None), 8, PAIRS, TRAIN, {"accuracy"}),
        (Plain(None, logits=False), 8, PAIRS, TRAIN, {"accuracy", "score"}),
    ],
)  # fmt: skip
def test_a_figure_is_missing_for_a_reason(
    features: Plain, count: int, labels: Tensor | None, train: Tensor, missing: set[str]
) -> None:
    reference = Reference.build(train, features)
    samples = normal(1, count, 1, 2, 2)
    got = measure_all(samples, labels, features=features, reference=reference)
    assert set(got.figures.by_name) == FIGURES
    assert {k for k, v in got.figures.by_name.items() if v is None} == missing | TO_TEACHER
    assert set(got.missing) == missing
    for reason in got.missing.values():
        assert not reason[0].islower()
        assert reason.endswith(".")
    assert measure(samples, labels, features=features, reference=reference) == got.figures.by_name


def test_training_images_that_do_not_fit_leave_nearest_out() -> None:
    whole = Reference.build(TRAIN, Plain())
    parts = Reference.of_features(
        "plain", 30, (Plain()(part).features for part in TRAIN.split(7)), None
    )
    torch.testing.assert_close(whole.features, parts.features)
    assert whole.count == parts.count == 30
    got = measure_all(normal(1, 8, 1, 2, 2), PAIRS, features=Plain(), reference=parts)
    assert set(got.missing) == {"nearest"}
    assert "do not fit in memory" in got.missing["nearest"]


def test_features_that_are_not_finite_give_no_figures() -> None:
    broken = Plain(value=float("nan"))
    reference = Reference.build(TRAIN, Plain())
    got = measure_all(normal(1, 8, 1, 2, 2), PAIRS, features=broken, reference=reference)
    assert set(got.missing) == FIGURES - {"variance", "nearest", *TO_TEACHER}
    assert all(v is None or v == v for v in got.figures.by_name.values())
    nothing = no_figures(Plain(), "The images are lost.")
    assert set(nothing.figures.by_name) == FIGURES
    assert set(nothing.missing) == FIGURES - {"rms_to_teacher"}


class Ramps:
    """Images that are brighter at the bottom, so that it can be seen how far one was turned."""

    num_classes = 0

    def __init__(self, count: int, width: int = 8) -> None:
        self.count, self.width = count, width

    def __len__(self) -> int:
        return self.count

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        ramp = torch.linspace(-1, 1, 8)[None, None, :, None].expand(len(index), 3, 8, self.width)
        noise = torch.stack([normal(int(i), 3, 8, self.width) for i in index])
        return (0.8 * ramp + 0.2 * noise).clamp(-1, 1), torch.zeros(len(index), dtype=torch.int64)

    def content_hash(self) -> str:
        return f"ramps {self.count}"


def test_images_are_turned_by_quarters() -> None:
    turned = Rotations(Ramps(3))
    assert (len(turned), turned.num_classes, turned.content_hash()) == (12, 4, "ramps 3")
    x, turns = turned.batch(torch.arange(8))
    assert isinstance(turns, Tensor)
    assert turns.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    plain, _ = Ramps(3).batch(torch.tensor([1]))
    for k in range(4):
        assert torch.equal(x[4 + k], torch.rot90(plain[0], k, (1, 2)))
    wide = Rotations(Ramps(3, width=6))
    assert wide.num_classes == 2
    both, _ = wide.batch(torch.arange(2))
    assert torch.equal(both[1], both[0].flip(1, 2))
    with pytest.raises(DataError, match="at least 1 image"):
        Rotations(Ramps(0))


def test_features_of_turned_images_have_no_class_logits(tmp_path: Path) -> None:
    made = train_features(
        tmp_path / "f", Rotations(Ramps(16)), Rotations(Ramps(4)), name=TASK, task=TASK, epochs=4,
        flip=False, progress=False,
    )  # fmt: skip
    assert made.held_out_accuracy is not None
    assert made.held_out_accuracy > 0.5  # guessing gives 0.25
    again = vision_features(tmp_path / "f")
    assert (again.task, again.num_classes, again.chance) == (TASK, None, 0.25)
    assert again(Ramps(4).batch(torch.arange(4))[0]).logits is None


def test_features_without_held_out_images_have_an_unknown_accuracy(tmp_path: Path) -> None:
    made = train_features(
        tmp_path / "f", Rotations(Ramps(8)), None, name="few", epochs=1, progress=False
    )
    assert made.held_out_accuracy is None
    assert vision_features(tmp_path / "f").held_out_accuracy is None
    card = tmp_path / "f" / "features.json"
    card.write_text(card.read_text().replace('"name": "few"', '"name": "../few"'))
    with pytest.raises(FolderError, match=r"name must be what"):
        vision_features(tmp_path / "f")
