"""What `sample` and the edits accept, and that everything else is one line that says what to do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fewstep
from fewstep.core.cond import Cond, as_cond
from fewstep.core.denoiser import Traits
from fewstep.errors import FewstepError, GridError, NonFiniteError, RangeError, ShapeError
from fewstep.testing import Mixture

TEACHER = Mixture(torch.arange(20.0).reshape(10, 1, 2) / 10, 0.5).guided()
X = torch.linspace(-1, 1, 4).reshape(2, 2)


def draw(cond: Any, **more: Any) -> Tensor:
    return fewstep.sample(TEACHER, cond, **{"steps": 2, "shape": (2,), "w": 1.0, **more})


@pytest.mark.parametrize(
    "cond",
    [
        [3, 7],
        (3, 7),
        range(3, 11, 4),
        np.array([3, 7], np.uint8),
        np.array([3, 7], np.int32),
        torch.tensor([3, 7], dtype=torch.int16),
        [torch.tensor(3), np.int64(7)],
    ],
)
def test_classes_may_be_any_list_of_integers(cond: Any) -> None:
    assert torch.equal(draw(cond), draw(torch.tensor([3, 7])))


@pytest.mark.parametrize("cond", [3, np.int64(3), torch.tensor(3), np.array(3)])
def test_one_class_is_one_image(cond: Any) -> None:
    assert torch.equal(draw(cond), draw([3]))


def test_conditions_of_floats_and_dicts_stay_as_they_are() -> None:
    floats, both = torch.rand(2, 3), {"a": torch.rand(2, 3)}
    assert as_cond(floats) is floats
    assert as_cond(both) is both
    ids = torch.tensor([1, 2])
    assert as_cond(ids) is ids


@pytest.mark.parametrize(
    "cond",
    ["a cat", ["a", "b"], np.array(["a"]), None, [True, False], {"a": [1]}, {}, [[1], [2, 3]],
     [2**70], object(), [3, "a"]],
)  # fmt: skip
def test_conditions_that_are_none(cond: Any) -> None:
    with pytest.raises(ShapeError, match="encode_prompts"):
        draw(cond)


class Strict:
    """A model of two-dimensional states in float32."""

    passes = 1
    traits = Traits(shape=(2,), dtype=torch.float32)

    def __call__(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        return torch.zeros_like(z)


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"batch_size": 0}, RangeError, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": -1}, RangeError, "batch_size"),
        ({"batch_size": 1.5}, RangeError, "batch_size"),
        ({"batch_size": True}, RangeError, "batch_size"),
        ({"seed": 0.5}, RangeError, "seed must be an integer"),
        ({"seed": 2**63}, RangeError, "seed must lie between"),
        ({"seed": "0"}, RangeError, "seed"),
        ({"seed": None}, RangeError, "seed"),
        ({"steps": 2.0}, RangeError, "steps must be an integer"),
        ({"steps": "2"}, RangeError, "steps"),
        ({"steps": 0}, RangeError, "steps"),
        ({"steps": -4}, RangeError, "steps"),
        ({"steps": 10**9}, GridError, "steps must be at most"),
        ({"steps": 10**30}, GridError, "steps must be at most"),
        ({"w": math.nan}, RangeError, "finite"),
        ({"w": math.inf}, RangeError, "finite"),
        ({"w": [1.0, math.nan]}, RangeError, "finite"),
        ({"w": 1e30}, RangeError, r"\[-1000, 1000\]"),
        ({"w": 10**400}, RangeError, "w must be a number"),
        ({"w": "2"}, RangeError, "w must be a number"),
        ({"w": None}, RangeError, "w must be a number"),
        ({"w": [1.0, 2.0, 3.0]}, ShapeError, "w has shape"),
        ({"sampler": 3}, RangeError, "sampler must be one of"),
        ({"z": np.zeros((2, 2))}, ShapeError, "floating-point tensor"),
        ({"z": torch.zeros(2, 2, dtype=torch.uint8)}, ShapeError, "127.5"),
        ({"z": torch.zeros(2, 2).double()}, ShapeError, "dtype of the model"),
        ({"z": torch.zeros(())}, ShapeError, "as many"),
        ({"z": torch.full((2, 2), math.nan)}, NonFiniteError, "must be finite"),
    ],
)
def test_arguments_that_are_refused(
    more: dict[str, Any], error: type[FewstepError], says: str
) -> None:
    with pytest.raises(error, match=says) as found:
        fewstep.sample(Strict(), [0, 1], **{"steps": 2, **more})
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_result_that_is_not_finite_is_never_returned(value: float) -> None:
    def broken(z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        return torch.full_like(z, value)

    cond: Any = [0, 1]
    model: Any = broken
    for call in (
        lambda: fewstep.sample(model, cond, steps=2, shape=(2,)),
        lambda: fewstep.encode(model, X, cond, steps=2),
        lambda: fewstep.decode(model, X, cond, steps=2),
        lambda: fewstep.img2img(model, X, cond, strength=0.5, steps=2),
        lambda: fewstep.inpaint(model, X, torch.ones(2), cond, steps=2),
    ):
        with pytest.raises(NonFiniteError, match="must be finite"):
            call()


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: fewstep.img2img(TEACHER, X, [0, 1], strength="1", steps=2), RangeError,
         "strength"),
        (lambda: fewstep.img2img(TEACHER, X, ["a"], strength=1, steps=2), ShapeError, "cond"),
        (lambda: fewstep.img2img(TEACHER, X, [0, 1], strength=1, steps=2, seed=0.5), RangeError,
         "seed"),
        (lambda: fewstep.img2img(TEACHER, X, [0, 1], strength=1, steps=2, batch_size=0), RangeError,
         "batch_size"),
        (lambda: fewstep.inpaint(TEACHER, X, [1, 0], [0, 1], steps=2), ShapeError, "mask"),
        (lambda: fewstep.inpaint(TEACHER, X, torch.tensor([math.nan, 0]), [0, 1], steps=2),
         NonFiniteError, "mask"),
        (lambda: fewstep.interpolate(X[0], X[1], 10**12), RangeError, r"\[2, 10000\]"),
        (lambda: fewstep.interpolate(X[0], X[1], 2.5), RangeError, "integer"),
        (lambda: fewstep.interpolate(X[0] * math.nan, X[1], 3), NonFiniteError, "first noise"),
        (lambda: fewstep.transfer(TEACHER, TEACHER, X, ["a"], [1], steps=2), ShapeError, "cond"),
    ],
)  # fmt: skip
def test_edits_that_are_refused(call: Any, error: type[FewstepError], says: str) -> None:
    with pytest.raises(error, match=says):
        call()


def test_edits_take_lists_and_masks_of_booleans() -> None:
    listed = fewstep.img2img(TEACHER, X, [3, 7], strength=np.float32(0.5), steps=2)
    assert torch.equal(
        listed, fewstep.img2img(TEACHER, X, torch.tensor([3, 7]), strength=0.5, steps=2)
    )
    mask = torch.tensor([True, False])
    drawn = fewstep.inpaint(TEACHER, X, mask, [3, 7], steps=2)
    assert torch.equal(drawn, fewstep.inpaint(TEACHER, X, mask.float(), [3, 7], steps=2))
    assert torch.equal(drawn[:, 1], X[:, 1])
