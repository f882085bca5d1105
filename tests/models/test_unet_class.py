"""Stock networks as denoisers: surgery, guidance, gradients, what is refused."""

from __future__ import annotations

import pytest
import torch

import fewstep
from fewstep.core.denoiser import Guided
from fewstep.errors import RangeError, ShapeError
from fewstep.models import Model, UNetConfig, build_unet, student_of, with_w_input
from fewstep.models.clocks.native import timestep_from_phi
from fewstep.testing import check_denoiser


def batch(n: int = 5) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(3)
    z = torch.randn(n, 1, 8, 8, generator=g)
    return z, torch.rand(n, generator=g) * 1.5, torch.arange(n), torch.rand(n, generator=g) * 4


def test_student_equals_teacher_bit_for_bit_at_every_w(teacher: Model) -> None:
    student = Model(with_w_input(teacher, 32), teacher.card).eval()
    z, phi, cond, _ = batch()
    expected = teacher(z, phi, cond, torch.zeros(5))
    for w in (-1.0, 0.0, 0.7, 4.0, 100.0):
        assert torch.equal(student(z, phi, cond, torch.full((5,), w)), expected)


def test_zero_w_input_still_gets_a_gradient_in_its_slow_columns_only(teacher: Model) -> None:
    student = Model(with_w_input(teacher, 32), teacher.card)
    z, phi, cond, w = batch()
    student(z, phi, cond, w).square().mean().backward()
    grad = student.network.time_embedding.cond_proj.weight.grad
    used = grad.abs().sum(dim=0) > 0
    assert 0 < int(used.sum()) < 32
    assert not used[0]
    assert not used[16]


@pytest.mark.parametrize("w", [3, None, (0,), (0, 1, 2), "ab", (4, 0), (0, float("inf"))])
def test_a_range_of_w_is_two_finite_numbers(teacher: Model, w: object) -> None:
    stage = fewstep.Stage("student-4", "teacher", updates=1, steps=4)
    with pytest.raises(RangeError, match=r"it must be \(low, high\)"):
        student_of(teacher, stage, w, w_dim=16)  # type: ignore[arg-type]


def test_surgery_leaves_the_teacher_alone(teacher: Model) -> None:
    student = with_w_input(teacher, 32)
    before = teacher.network.conv_in.weight.clone()
    student.conv_in.weight.data.add_(1)
    assert torch.equal(teacher.network.conv_in.weight, before)


def test_a_student_of_a_student_is_a_plain_copy(student: Model) -> None:
    again = Model(with_w_input(student, 64), student.card).eval()
    z, phi, cond, w = batch()
    assert torch.equal(again(z, phi, cond, w), student(z, phi, cond, w))


def test_w_matters_once_the_input_is_not_zero(student: Model) -> None:
    z, phi, cond, w = batch()
    assert not torch.allclose(student(z, phi, cond, w), student(z, phi, cond, w + 1))


def test_models_pass_the_public_check(teacher: Model, student: Model) -> None:
    cond = torch.arange(6)
    check_denoiser(student, cond=cond)
    check_denoiser(Guided(teacher, teacher.null_cond), cond=cond, null_cond=teacher.null_cond)


def test_native_timesteps_are_whole_on_the_grid() -> None:
    phi = torch.tensor([torch.pi / 2 * k / 4 for k in (1, 2, 3, 4)])
    torch.testing.assert_close(
        timestep_from_phi(phi), torch.tensor([255.0, 511.0, 767.0, 1023.0]), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("classes", [[11], [-1], [0, 42]])
def test_a_class_that_is_not_there_is_refused(student: Model, classes: list[int]) -> None:
    with pytest.raises(RangeError, match="classes 0 to 9"):
        fewstep.sample(student, torch.tensor(classes), w=1.0)


def test_a_condition_of_another_kind_is_refused(student: Model) -> None:
    with pytest.raises(ShapeError, match="class ids"):
        fewstep.sample(student, torch.randn(2, 3), w=1.0)


def test_images_too_small_for_the_levels_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"network\.channels"):
        build_unet(UNetConfig(channels=(8, 8, 8, 8, 8), groups=4), (1, 8, 8), 10)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"channels": (10, 16), "groups": 8}, "divide"),
        ({"attention": (True,)}, "one true/false per level"),
        ({"w_dim": 33}, "even"),
        ({"chanels": (8,)}, "Extra"),
    ],
)
def test_network_configuration_is_checked(wrong: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        UNetConfig.model_validate(wrong)


def test_attention_levels_build_and_run() -> None:
    config = UNetConfig(channels=(8, 16), groups=4, attention=(False, True))
    unet = build_unet(config, (3, 8, 8), 2)
    out = unet(torch.randn(2, 3, 8, 8), 5, None, class_labels=torch.tensor([0, 2])).sample
    assert out.shape == (2, 3, 8, 8)


def test_checkpointed_activations_change_no_gradient(student: Model) -> None:
    z, phi, cond, w = batch()
    gradients = []
    for saving in (False, True):
        student.train()
        if saving:
            student.checkpoint_activations()
            assert student.network.is_gradient_checkpointing
        student.zero_grad()
        student(z, phi, cond, w).square().mean().backward()
        gradients.append([p.grad.clone() for p in student.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    assert all(a.equal(b) for a, b in zip(*gradients, strict=True))
