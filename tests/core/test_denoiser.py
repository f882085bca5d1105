"""Guidance: exact at its ends, linear between, per example, inside its interval only."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.angle import x_from_v
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Guided, Traits, as_w, cheapest, guide, traits_of
from fewstep.core.sample import sample
from fewstep.core.seed import Noise, derive, generator
from fewstep.errors import RangeError, ShapeError
from fewstep.testing import Mixture, check_denoiser

G = torch.Generator().manual_seed(0)
MIXTURE = Mixture(torch.randn(3, 2, 2, generator=G, dtype=torch.float64), 0.3)
COND = torch.arange(6) % 3
Z = torch.randn(6, 2, generator=G, dtype=torch.float64)
PHI = torch.linspace(0.1, math.pi / 2, 6, dtype=torch.float64)


def ask(denoiser: object, w: float | Tensor, cond: Cond = COND) -> Tensor:
    weights = torch.as_tensor(w, dtype=torch.float64).expand(len(Z))
    return denoiser(Z, PHI, cond, weights)  # type: ignore[operator, no-any-return]


def test_the_exact_pair_passes_the_public_check() -> None:
    check_denoiser(MIXTURE.guided(), COND, null_cond=MIXTURE.null_cond, shape=(2,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ends_of_w_are_the_passes_themselves_bit_for_bit(dtype: torch.dtype) -> None:
    mixture = Mixture(MIXTURE.means.to(dtype), 0.3)
    z, phi = Z.to(dtype), PHI.to(dtype)
    null = torch.full_like(COND, 3)
    for w, cond in ((0.0, COND), (-1.0, null)):
        weights = torch.full((6,), w, dtype=dtype)
        plain = mixture(z, phi, cond, weights)
        assert torch.equal(mixture.guided()(z, phi, COND, weights), plain)


def test_the_derivative_by_w_is_x_cond_minus_x_uncond() -> None:
    w = torch.full((6,), 1.7, dtype=torch.float64, requires_grad=True)
    x = x_from_v(Z, MIXTURE.guided()(Z, PHI, COND, w), PHI)
    v_cond, v_uncond = ask(MIXTURE, 0.0), ask(MIXTURE, 0.0, torch.full_like(COND, 3))
    expected = x_from_v(Z, v_cond, PHI) - x_from_v(Z, v_uncond, PHI)
    for d in range(2):
        (slope,) = torch.autograd.grad(x[:, d].sum(), w, retain_graph=True)
        torch.testing.assert_close(slope, expected[:, d], rtol=0, atol=1e-12)


@given(w=st.floats(-2, 20))
def test_guiding_v_is_guiding_x(w: float) -> None:
    v = ask(MIXTURE.guided(), w)
    x_cond = x_from_v(Z, ask(MIXTURE, 0.0), PHI)
    x_uncond = x_from_v(Z, ask(MIXTURE, 0.0, torch.full_like(COND, 3)), PHI)
    expected = (1 + w) * x_cond - w * x_uncond
    torch.testing.assert_close(x_from_v(Z, v, PHI), expected, rtol=0, atol=1e-11)


@given(order=st.permutations(range(6)))
def test_permuting_a_batch_permutes_the_answer(order: list[int]) -> None:
    w = torch.linspace(-1, 4, 6, dtype=torch.float64)
    i = torch.tensor(order)
    guided = MIXTURE.guided()
    assert torch.equal(guided(Z[i], PHI[i], COND[i], w[i]), guided(Z, PHI, COND, w)[i])


def test_outside_its_interval_guidance_is_off() -> None:
    guided = Guided(MIXTURE, MIXTURE.null_cond, interval=(0.3, 1.0))
    v, plain, full = ask(guided, 2.0), ask(MIXTURE, 0.0), ask(MIXTURE.guided(), 2.0)
    inside = (PHI >= 0.3) & (PHI <= 1.0)
    assert 0 < int(inside.sum()) < 6
    assert torch.equal(v[inside], full[inside])
    assert torch.equal(v[~inside], plain[~inside])


def test_the_threshold_is_applied_to_x_after_mixing() -> None:
    guided = Guided(MIXTURE, MIXTURE.null_cond, threshold=lambda x: x.clamp(-0.5, 0.5))
    x = x_from_v(Z, ask(guided, 3.0), PHI)
    mixed = x_from_v(Z, ask(MIXTURE.guided(), 3.0), PHI)
    assert float(mixed.abs().max()) > 0.6
    torch.testing.assert_close(x, mixed.clamp(-0.5, 0.5), rtol=0, atol=1e-12)


def test_a_threshold_that_does_nothing_changes_no_bit() -> None:
    guided = Guided(MIXTURE, MIXTURE.null_cond, threshold=lambda x: x.clamp(-1e6, 1e6))
    assert torch.equal(ask(guided, 3.0), ask(MIXTURE.guided(), 3.0))


def test_guidance_costs_two_passes_and_forgets_the_range_of_w() -> None:
    @dataclasses.dataclass
    class WithTraits:
        passes: int = 3
        traits: Traits = dataclasses.field(default_factory=lambda: Traits((2,), (0.0, 1.0), (4,)))

        def __call__(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
            assert bool((w == 0).all())
            return z

    guided = Guided(WithTraits(), torch.tensor([0]))
    assert guided.passes == 6
    assert traits_of(guided) == Traits((2,), None, (4,))
    ask(guided, 5.0)


def test_a_pair_that_w_leaves_unguided_costs_one_pass() -> None:
    guided = Guided(MIXTURE, MIXTURE.null_cond)
    off, on = torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])
    assert cheapest(guided, off) is MIXTURE
    assert cheapest(guided, on) is guided
    assert cheapest(MIXTURE, off) is MIXTURE
    # A threshold is not part of the conditional pass, so that pair stays a pair.
    clamped = dataclasses.replace(guided, threshold=lambda x: x.clamp(-1, 1))
    assert cheapest(clamped, off) is clamped
    z = torch.randn(6, 2, dtype=torch.float64)
    both = sample(guided, COND, w=0.0, steps=4, z=z)
    assert both.equal(sample(MIXTURE, COND, w=0.0, steps=4, z=z))


def test_conditions_may_be_dicts() -> None:
    class Dictionary:
        passes = 1

        def __call__(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
            assert isinstance(cond, dict)
            return MIXTURE(z, phi, cond["class"], w)

    guided = Guided(Dictionary(), {"class": torch.tensor([3])})
    assert torch.equal(ask(guided, 2.0, {"class": COND}), ask(MIXTURE.guided(), 2.0))


@pytest.mark.parametrize(
    ("interval", "null", "error", "says"),
    [
        ((1.0, 0.5), torch.tensor([3]), RangeError, "interval"),
        (None, torch.tensor(3), ShapeError, "batch"),
        (None, torch.tensor([3, 3]), ShapeError, "batch of 1"),
    ],
)
def test_a_pair_that_is_none(
    interval: tuple[float, float] | None, null: Tensor, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        Guided(MIXTURE, null, interval=interval)


def test_guide_takes_one_w_an_example() -> None:
    a, b = torch.ones(2, 3), torch.zeros(2, 3)
    assert torch.equal(guide(a, b, torch.tensor([0.0, 2.0]))[:, 0], torch.tensor([1.0, 3.0]))


@pytest.mark.parametrize(
    ("w", "w_range", "error", "says"),
    [
        (torch.zeros(3), None, ShapeError, "batch of 2"),
        (torch.zeros(2, 1), None, ShapeError, "one number"),
        (math.nan, None, RangeError, "finite"),
        (5.0, (0.0, 4.0), RangeError, r"w = 5 .* \[0, 4\]"),
        (torch.tensor([1.0, -0.5]), (0.0, 4.0), RangeError, r"w = -0\.5"),
    ],
)
def test_a_w_that_cannot_be(
    w: float | Tensor, w_range: tuple[float, float] | None, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        as_w(w, torch.zeros(2, 3), w_range)


def test_the_ends_of_the_range_belong_to_it_in_float32() -> None:
    assert as_w(0.3, torch.zeros(2, 1), (0.0, 0.3)).dtype == torch.float32
    assert as_w(0.3, torch.zeros(2, 1, dtype=torch.float64)).dtype == torch.float64
    assert as_w(0.3, torch.zeros(2, 1, dtype=torch.bfloat16)).dtype == torch.float32


def test_sample_refuses_what_the_denoiser_was_not_made_for() -> None:
    class Student:
        passes = 1
        traits = Traits((2,), (0.0, 4.0), (4,), "deterministic")

        def __call__(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
            return torch.zeros_like(z)

    student, cond = Student(), torch.zeros(3)
    assert sample(student, cond, w=4.0).shape == (3, 2)
    for wrong, error, says in (
        ({"w": 4.1}, RangeError, "trained for"),
        ({"steps": 8}, RangeError, "made for 4"),
        ({"sampler": "heun"}, RangeError, "'deterministic' sampler"),
        ({"sampler": "hein"}, RangeError, "Did you mean 'heun'"),
        ({"shape": (3,)}, ShapeError, r"\(3,\)"),
        ({"z": torch.zeros(2, 2)}, ShapeError, "as many"),
    ):
        with pytest.raises(error, match=says):
            sample(student, cond, **wrong)  # type: ignore[arg-type]
    with pytest.raises(RangeError, match="any number of steps: pass one"):
        sample(MIXTURE, cond, shape=(2,))
    with pytest.raises(ShapeError, match="shape of one example"):
        sample(MIXTURE, cond, steps=4)


def test_condition_batches() -> None:
    both = {"a": torch.arange(4), "b": torch.arange(8).reshape(4, 2)}
    null = {"a": torch.tensor([9]), "b": torch.zeros(1, 2, dtype=torch.long)}
    assert conds.batch_size(both) == 4
    dropped = conds.replace(both, torch.tensor([True, False, False, True]), null)
    assert isinstance(dropped, dict)
    assert dropped["a"].tolist() == [9, 1, 2, 9]
    assert dropped["b"][0].tolist() == [0, 0]
    joined = conds.concat(both, conds.repeat_null(null, 2))
    assert conds.batch_size(joined) == 6
    taken = conds.take(both, torch.tensor([2]))
    assert isinstance(taken, dict)
    assert taken["b"].tolist() == [[4, 5]]
    with pytest.raises(ShapeError, match="keys"):
        conds.concat(both, {"a": torch.arange(2)})
    with pytest.raises(ShapeError, match="both must be"):
        conds.concat(both, torch.arange(2))
    with pytest.raises(ShapeError, match="one batch size"):
        conds.batch_size({"a": torch.arange(2), "b": torch.arange(3)})


@given(a=st.integers(0, 2**62), b=st.integers(0, 10**9))
def test_derived_seeds_are_stable_and_apart(a: int, b: int) -> None:
    assert derive(a, b) == derive(a, b) < 2**63
    assert derive(a, b) != derive(a, b + 1)
    assert derive(a, "x", b) != derive(a, b, "x")
    assert derive(a, 1) != derive(a, "1")


def test_derived_seeds_never_change() -> None:
    """A changed hash would change every image of every seed."""
    assert [derive(0, "image", k) % 1000 for k in range(3)] == [457, 652, 604]


def test_noise_streams_belong_to_images_not_batches() -> None:
    shape, cpu = (2, 3), torch.device("cpu")
    whole, part = Noise(5, range(6)), Noise(5, [4, 2])
    for _ in range(2):
        a, b = (n.draw(shape, torch.float32, cpu) for n in (whole, part))
        assert torch.equal(a[[4, 2]], b)
    assert torch.equal(generator("cpu", 1, 2).get_state(), generator("cpu", 1, 2).get_state())
