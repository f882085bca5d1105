"""`ClassConditionalPipeline` takes the arguments of diffusers' own pipelines, and checks them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor

from fewstep.errors import FewstepError, NonFiniteError, RangeError, ShapeError
from fewstep.models import Model
from fewstep.models.clocks.native import native_scheduler
from fewstep.models.pipeline import ClassConditionalPipeline


@pytest.fixture
def pipe(student: Model) -> ClassConditionalPipeline:
    made = ClassConditionalPipeline(student.network, native_scheduler(), None, 4, [0.0, 4.0])
    made.set_progress_bar_config(disable=True)
    return made


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(k) for k in range(count)]


def drawn(pipe: ClassConditionalPipeline, *args: Any, **more: Any) -> Tensor:
    images: Tensor = pipe(*args, output_type="latent", **more).images
    return images


def test_several_images_per_label_are_drawn_side_by_side(pipe: ClassConditionalPipeline) -> None:
    several = drawn(pipe, [3, 7], num_images_per_prompt=2, generator=generators(4))
    single = drawn(pipe, [3, 3, 7, 7], generator=generators(4))
    assert torch.equal(several, single)
    assert len(pipe(5, num_images_per_prompt=3).images) == 3


@pytest.mark.parametrize(
    "labels", [[3, 7], (3, 7), np.array([3, 7], np.uint8), torch.tensor([3, 7])]
)
def test_labels_of_every_kind_of_integer(pipe: ClassConditionalPipeline, labels: Any) -> None:
    expected = drawn(pipe, [3, 7], generator=generators(2))
    assert torch.equal(drawn(pipe, labels, generator=generators(2)), expected)


def test_a_callback_sees_and_replaces_the_latents(pipe: ClassConditionalPipeline) -> None:
    seen: list[tuple[int, int, Tensor]] = []

    def look(owner: Any, index: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert owner is pipe
        seen.append((index, int(t), tensors["latents"]))
        return tensors

    plain = drawn(pipe, [3], generator=generators(1))
    watched = drawn(pipe, [3], generator=generators(1), callback_on_step_end=look)
    assert torch.equal(watched, plain)
    assert [(index, t) for index, t, _ in seen] == [(0, 1023), (1, 767), (2, 511), (3, 255)]
    assert torch.equal(seen[-1][2], plain)

    def zero(owner: Any, index: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": torch.zeros_like(tensors["latents"])}

    assert not drawn(pipe, [3], callback_on_step_end=zero).any()


def test_output_types(pipe: ClassConditionalPipeline) -> None:
    z = torch.randn(1, 1, 8, 8, generator=generators(1)[0])
    out = {t: pipe([3], latents=z, output_type=t).images for t in ("pil", "np", "pt", "latent")}
    assert torch.equal(out["pt"], out["latent"])
    assert out["np"].shape == (1, 8, 8, 1)
    assert 0 <= out["np"].min() <= out["np"].max() <= 1
    assert np.abs(np.asarray(out["pil"][0]) / 255 - out["np"][0, ..., 0]).max() <= 0.5 / 255 + 1e-6
    assert pipe([3], latents=z, output_type="pt", return_dict=False)[0].equal(out["pt"])


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ({"class_labels": [0, 1, 0], "generator": generators(2)}, RangeError, "2 generators"),
        ({"class_labels": [0, 1], "generator": generators(3)}, RangeError, "3 generators"),
        ({"num_images_per_prompt": 2, "generator": generators(1)}, RangeError, "for 2 images"),
        ({"num_images_per_prompt": 0}, RangeError, "num_images_per_prompt"),
        ({"num_images_per_prompt": 1.5}, RangeError, "num_images_per_prompt"),
        ({"output_type": "numpy"}, RangeError, "'pil', 'np', 'pt', 'latent'"),
        ({"class_labels": [1.7]}, ShapeError, "integers"),
        ({"class_labels": ["a"]}, ShapeError, "integers"),
        ({"class_labels": "a"}, ShapeError, "integers"),
        ({"class_labels": [True]}, ShapeError, "integers"),
        ({"class_labels": []}, ShapeError, "at least one"),
        ({"class_labels": None}, ShapeError, "integers"),
        ({"class_labels": [-1]}, RangeError, r"0\.\.9"),
        ({"class_labels": [2**70]}, ShapeError, "integers"),
        ({"guidance_scale": [1.0, 2.0]}, RangeError, "one number"),
        ({"guidance_scale": float("nan")}, RangeError, "one number"),
        ({"guidance_scale": "2"}, RangeError, "one number"),
        ({"num_inference_steps": 4.5}, RangeError, "integer"),
        ({"num_inference_steps": 0}, RangeError, "integer"),
        ({"latents": torch.zeros(1, 1, 8, 8).double()}, ShapeError, "float64"),
        ({"latents": torch.zeros(2, 1, 8, 8)}, ShapeError, "latents"),
        ({"latents": [0.0]}, ShapeError, "latents"),
        ({"latents": torch.full((1, 1, 8, 8), float("nan"))}, NonFiniteError, "latents"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, RangeError, "prompt_embeds"),
    ],
)
def test_what_is_refused(
    pipe: ClassConditionalPipeline, call: dict[str, Any], error: type[FewstepError], says: str
) -> None:
    with pytest.raises(error, match=says):
        pipe(**{"class_labels": [1], **call})


def test_weights_of_nan_give_no_picture(pipe: ClassConditionalPipeline) -> None:
    pipe.unet.conv_out.bias.data[0] = float("nan")
    for kind in ("pil", "np", "pt", "latent"):
        with pytest.raises(NonFiniteError, match="images"):
            pipe([1], output_type=kind)


def test_a_network_that_is_offloaded_draws_the_same(pipe: ClassConditionalPipeline) -> None:
    """Its parameters have no device while it waits, as with enable_sequential_cpu_offload."""
    expected = drawn(pipe, [3, 7], generator=generators(2))
    cpu_offload(pipe.unet, torch.device("cpu"))
    assert pipe.unet.device.type == "meta"
    assert torch.equal(drawn(pipe, [3, 7], generator=generators(2)), expected)
    assert pipe.model_cpu_offload_seq.split("->") == ["unet", "vae"]
