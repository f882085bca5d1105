"""The public checks find what is planted, say it in words, and pass what is right."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fewstep.core.angle import eps_from_v, rotate, x_from_v
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Guided, Traits
from fewstep.core.grid import Grid
from fewstep.core.samplers import SAMPLERS, Move
from fewstep.core.samplers.loop import Velocity
from fewstep.distill.problem import Regression
from fewstep.testing import CheckFailed, Mixture, check_denoiser, check_sampler, check_stage

G = torch.Generator().manual_seed(0)
MIXTURE = Mixture(torch.randn(3, 2, 2, generator=G), 0.3)
COND = torch.arange(6) % 3
Answer = Callable[[Tensor, Tensor, Cond, Tensor], Tensor]


class Planted:
    """The exact guided pair, spoilt by `spoil`."""

    passes = 2

    def __init__(self, spoil: Callable[..., Tensor]) -> None:
        self.spoil = spoil

    def __call__(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        return self.spoil(MIXTURE.guided(), z, phi, cond, w)


def in_place(f: Answer, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
    return f(z.mul_(1.5), phi, cond, w)


def raises(f: Answer, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
    raise KeyError("timestep")


FAULTS: list[tuple[str, Callable[..., Tensor]]] = [
    ("it raised KeyError", raises),
    ("shape, dtype", lambda f, z, phi, c, w: f(z, phi, c, w)[:, :1]),
    ("shape, dtype", lambda f, z, phi, c, w: f(z, phi, c, w).double()),
    ("changed in place", in_place),
    ("eval()", lambda f, z, phi, c, w: f(z, phi, c, w) + torch.randn(())),
    ("division", lambda f, z, phi, c, w: f(z, phi, c, w) / (phi < 1.57)[:, None]),
    ("per example", lambda f, z, phi, c, w: f(z, phi[:1].expand(len(z)), c, w)),
    ("per example", lambda f, z, phi, c, w: f(z, phi, c, w[:1].expand(len(z)))),
    ("batch statistics", lambda f, z, phi, c, w: f(z - z.mean(dim=0), phi, c, w)),
    ("w v_uncond", lambda f, z, phi, c, w: f(z, phi, c, w.square())),
    ("w v_uncond", lambda f, z, phi, c, w: f(z, phi, c, w).clamp(-0.3, 0.3)),
]


@pytest.mark.parametrize(
    ("says", "spoil"), FAULTS, ids=[f"{i}-{s}" for i, (s, _) in enumerate(FAULTS)]
)
def test_planted_faults_of_denoisers_are_found(says: str, spoil: Callable[..., Tensor]) -> None:
    with pytest.raises(CheckFailed, match="this denoiser breaks") as caught:
        check_denoiser(Planted(spoil), COND, null_cond=MIXTURE.null_cond, shape=(2,))
    assert says in str(caught.value)


def test_all_faults_are_told_at_once() -> None:
    class Worse(Planted):
        passes = "two"  # type: ignore[assignment]

    with pytest.raises(CheckFailed) as caught:
        check_denoiser(Worse(in_place), COND, shape=(2,))
    assert "passes is 'two'" in str(caught.value)
    assert "changed in place" in str(caught.value)


@pytest.mark.parametrize("uses_w", [True, False])
def test_a_student_for_a_range_that_leaves_w_out_is_found(uses_w: bool) -> None:
    class Student(torch.nn.Module):
        passes = 1
        traits = Traits(shape=(2,), w_range=(0.0, 4.0))

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)
            torch.nn.init.zeros_(self.layer.weight)  # before training v is the same at every w

        def forward(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
            last = w if uses_w else phi
            v: Tensor = self.layer(torch.cat([z, last[:, None]], dim=1))
            return v

    if uses_w:
        assert "w is an input of a student for a range of w" in check_denoiser(Student(), COND)
        return
    with pytest.raises(CheckFailed, match=r"v does not depend on w, and w_range is \[0, 4\]"):
        check_denoiser(Student(), COND)


def test_a_wrong_null_condition_is_found() -> None:
    with pytest.raises(CheckFailed, match="null_cond is not the one"):
        check_denoiser(MIXTURE.guided(), COND, null_cond=torch.tensor([0]), shape=(2,))


def test_the_other_guidance_convention_is_found() -> None:
    @dataclasses.dataclass(frozen=True)
    class Scale(Guided):
        def __call__(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
            return super().__call__(z, phi, cond, w - 1)

    with pytest.raises(CheckFailed, match="w = 0 means no guidance here"):
        check_denoiser(
            Scale(MIXTURE, MIXTURE.null_cond), COND, null_cond=MIXTURE.null_cond, shape=(2,)
        )


def test_right_ones_pass_and_say_what_was_checked() -> None:
    laws = check_denoiser(MIXTURE.guided(), COND, null_cond=MIXTURE.null_cond, shape=(2,))
    assert "w = -1 is the unconditional pass, bit for bit" in laws
    assert check_denoiser(MIXTURE, COND, shape=(2,))


def backwards(grid: Grid) -> list[Move]:
    return list(reversed(SAMPLERS["deterministic"].moves(grid)))


def skips(grid: Grid) -> list[Move]:
    moves = SAMPLERS["deterministic"].moves(grid)
    return moves[:1] + moves[2:]


def euler(velocity: Velocity, z: Tensor, move: Move) -> Tensor:
    """A wrong sign in the rotation."""
    return rotate(z, velocity(z, move.phi), move.to - move.phi)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"moves": backwards}, "one end of the grid"),
        ({"moves": skips}, "gap"),
        ({"calls": lambda _: 2}, "costs what it says"),
        ({"order": 2}, "its order is 2"),
        ({"step": euler}, "its order is 1"),
    ],
)
def test_planted_faults_of_samplers_are_found(change: dict[str, object], says: str) -> None:
    with pytest.raises(CheckFailed, match=says):
        check_sampler(dataclasses.replace(SAMPLERS["deterministic"], **change))  # type: ignore[arg-type]


def test_a_stochastic_sampler_with_too_little_noise_is_found() -> None:
    def quiet(velocity: Velocity, z: Tensor, move: Move) -> Tensor:
        return 0.999 * rotate(z, velocity(z, move.phi), move.phi - move.to)

    with pytest.raises(CheckFailed, match="data's distribution"):
        check_sampler(dataclasses.replace(SAMPLERS["stochastic"], step=quiet))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda r, g: r._replace(z=torch.randn_like(r.z)), "nothing else"),
        (lambda r, g: r._replace(phi=r.phi + 1), "pi/2"),
        (lambda r, g: r._replace(w=r.w[:1]), "w is one number an example"),
        (lambda r, g: r._replace(v_target=r.v_target / 0), "finite"),
        (lambda r, g: r._replace(v_target=r.v_target.requires_grad_()), "no_grad"),
        (lambda r, g: r._replace(cond=r.cond[:2]), "cond has one"),
    ],
)
def test_planted_faults_of_stages_are_found(
    spoil: Callable[[Regression, torch.Generator], Regression], says: str
) -> None:
    from fewstep.distill.pretrain import Pretrain

    right = Pretrain(MIXTURE.null_cond)

    def stage(x: Tensor, cond: Cond, generator: torch.Generator) -> Regression:
        return spoil(right(x, cond, generator), generator)

    x = MIXTURE.draw(COND, torch.Generator())
    check_stage(right, x, COND)
    with pytest.raises(CheckFailed, match=says):
        check_stage(stage, x, COND)


def test_a_halving_that_lands_elsewhere_is_found() -> None:
    from fewstep.distill.steps import StepDistillation

    class Off(StepDistillation):
        def target(self, z: Tensor, index: Tensor, cond: Cond, w: Tensor) -> Tensor:
            return super().target(z, index, cond, w) + 1e-3

    x = MIXTURE.draw(COND, torch.Generator())
    with pytest.raises(CheckFailed, match="lands where"):
        check_stage(Off(MIXTURE.guided(), 4, w_range=(0, 4)), x, COND)


def test_the_mixture_is_the_posterior_mean() -> None:
    """Against brute force: importance-weighted draws from the prior."""
    g = torch.Generator().manual_seed(5)
    z, phi = torch.tensor([[0.4, -0.2]], dtype=torch.float64), 0.9
    mixture = Mixture(MIXTURE.means.double(), 0.3)
    cond = torch.full((400_000,), 1)
    x = mixture.draw(cond, g)
    a, s = torch.cos(torch.tensor(phi)), torch.sin(torch.tensor(phi))
    weight = torch.softmax(-(z - a * x).square().sum(dim=1) / (2 * s * s), dim=0)
    expected = (weight[:, None] * x).sum(dim=0)
    angle = torch.tensor([phi], dtype=torch.float64)
    v = mixture(z, angle, torch.tensor([1]), angle)
    torch.testing.assert_close(x_from_v(z, v, angle)[0], expected, rtol=0, atol=0.01)
    eps = eps_from_v(z, v, angle)
    torch.testing.assert_close(a * x_from_v(z, v, angle) + s * eps, z)
