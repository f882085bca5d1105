"""Stage two: the collapsed target against the teacher's own sub-steps, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from fewstep.core.angle import phi_from_alphas_cumprod, rotate
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Traits
from fewstep.core.grid import Grid, cosine, discrete
from fewstep.distill.problem import loss, snr_plus_one, truncated_snr
from fewstep.distill.steps import StepDistillation, collapse_coefficients
from fewstep.errors import GridError, RangeError
from fewstep.testing import Counting, Gaussian, Mixture, check_stage

G = torch.Generator().manual_seed(0)
MIXTURE = Mixture(torch.randn(3, 2, 2, generator=G, dtype=torch.float64), 0.3)
COND = torch.arange(12) % 3
X = MIXTURE.draw(COND, G)


def by_substeps(
    z: Tensor, h: list[float], phi: float, teacher: Gaussian
) -> tuple[Tensor, list[Tensor]]:
    velocities, y = [], z
    for step in h:
        v = teacher(y, torch.full((len(z),), phi, dtype=torch.float64), COND, COND)
        velocities.append(v)
        y, phi = rotate(y, v, step), phi - step
    return y, velocities


def collapse(z: Tensor, velocities: list[Tensor], h: list[float]) -> Tensor:
    """The v (B, *D) whose one rotation by sum(h) does what the sub-steps did to z (math.md 5)."""
    d = torch.zeros_like(z)
    for v, x in zip(velocities, h, strict=True):
        d = math.cos(x) * d + math.sin(x) * v
    of_z, of_d = collapse_coefficients(h)
    return of_z * z + of_d * d


def states(phi: float) -> Tensor:
    g = torch.Generator().manual_seed(1)
    x, eps = (torch.randn(12, 3, dtype=torch.float64, generator=g) for _ in range(2))
    return math.cos(phi) * (0.3 + 0.4 * x) + math.sin(phi) * eps


@given(
    phi=st.floats(1e-3, math.pi / 2),
    parts=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=6),
    reach=st.floats(0.01, 1.0),
    encode=st.booleans(),
)
def test_the_collapsed_target_is_the_substeps_in_float64(
    phi: float, parts: list[float], reach: float, encode: bool
) -> None:
    """Equal and unequal sub-steps, both directions, any start and any way to go."""
    room = (math.pi / 2 - phi) if encode else phi
    assume(room * reach > 1e-4)
    total = (-1 if encode else 1) * room * reach
    h = [total * p / sum(parts) for p in parts]
    z, teacher = states(phi), Gaussian(0.3, 0.4)
    reached, velocities = by_substeps(z, h, phi, teacher)
    once = rotate(z, collapse(z, velocities, h), math.fsum(h))
    assert float((once - reached).abs().max()) < 1e-12


@pytest.mark.parametrize("substeps", [1, 2, 3, 8])
@pytest.mark.parametrize("encode", [False, True])
@pytest.mark.parametrize("even", [True, False])
def test_the_collapsed_target_is_the_substeps_in_float32(
    substeps: int, encode: bool, even: bool
) -> None:
    """Down to phi = 1e-3, where inverting the step in x loses three to four digits."""
    teacher = Gaussian(0.3, 0.4)
    for phi in torch.logspace(-3, math.log10(math.pi / 2), 25, dtype=torch.float64).tolist():
        room = (math.pi / 2 - phi) if encode else phi
        if room < 1e-4:
            continue
        weights = [1.0] * substeps if even else [1.0 + k for k in range(substeps)]
        h = [(-1 if encode else 1) * room * w / sum(weights) for w in weights]
        z = states(phi)
        reached, velocities = by_substeps(z, h, phi, teacher)
        exact = collapse(z, velocities, h)
        single = collapse(z.float(), [v.float() for v in velocities], h)
        assert float((single.double() - exact).abs().max()) < 1e-5
        once = rotate(z.float(), single, math.fsum(h))
        assert float((once.double() - reached).abs().max()) < 1e-5


def test_two_equal_halves_have_the_textbook_form() -> None:
    z, v1, v2 = torch.randn(3, 5, 2, generator=G, dtype=torch.float64)
    h = 0.3
    expected = 0.5 * (v1 + v2 / math.cos(h) - math.tan(h) * z)
    torch.testing.assert_close(collapse(z, [v1, v2], [h, h]), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("h", [[0.1, -0.1], [0.2, 0.0], [1.0, 1.0], []])
def test_substeps_that_cannot_be_one_step(h: list[float]) -> None:
    with pytest.raises(GridError, match="one sign"):
        collapse_coefficients(h)


STAGES: list[dict[str, object]] = [
    {"steps": n, "substeps": k, "stride": s, "direction": d}
    for n in (1, 2, 5)
    for k in (1, 2, 3)
    for s, d in ((1, "decode"), (2, "decode"), (1, "encode"))
]
SECOND: list[dict[str, object]] = [
    {"steps": n, "substeps": k, "order": 2, "stride": s}
    for n in (1, 4)
    for k in (1, 2, 5)
    for s in (1, 2)
]


@pytest.mark.parametrize("how", STAGES + SECOND, ids=lambda t: "-".join(map(str, t.values())))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_stage_passes_the_public_check(how: dict[str, object], dtype: torch.dtype) -> None:
    stage = StepDistillation(MIXTURE.guided(), w_range=(0.0, 4.0), **how)  # type: ignore[arg-type]
    check_stage(stage, X.to(dtype), COND)


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("order", [1, 2])
def test_the_error_of_a_target_falls_by_its_order(order: int, even: bool) -> None:
    """For data N(m, s^2) the true map from one angle to another is known: z = c m + S eps."""

    def reached(angle: float, z: Tensor, to: float) -> Tensor:
        def spread(phi: float) -> float:
            return math.hypot(0.4 * math.cos(phi), math.sin(phi))

        eps = (z - 0.3 * math.cos(angle)) / spread(angle)
        return 0.3 * math.cos(to) + spread(to) * eps

    def uneven(phi: float, to: float, parts: int) -> Grid:
        return (*(phi + (to - phi) * (k / parts) ** 1.3 for k in range(parts)), to)

    def error(substeps: int) -> float:
        split = None if even else uneven
        stage = StepDistillation(
            Gaussian(0.3, 0.4), 2, substeps, order=order, w_range=(0, 4), split=split
        )  # type: ignore[arg-type]
        move, z = stage.moves[0], states(math.pi / 2)
        v = stage.target(z, torch.zeros(len(z), dtype=torch.long), COND, COND.double())
        return float((rotate(z, v, move.phi - move.to) - reached(move.phi, z, move.to)).abs().max())

    errors = [error(n) for n in (32, 64, 128)]
    measured = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert measured == [pytest.approx(order, abs=0.1)] * 2


def test_two_sub_steps_of_order_two_are_the_midpoint_rule() -> None:
    """The second velocity, asked half way and turned back to the start, turns the whole stride."""
    teacher, z, h = Gaussian(0.3, 0.4), states(math.pi / 2), math.pi / 8
    stage = StepDistillation(teacher, 2, order=2, w_range=(0, 4))
    ask = [
        torch.full((len(z),), phi, dtype=torch.float64) for phi in (math.pi / 2, 3 * math.pi / 8)
    ]
    half = rotate(z, teacher(z, ask[0], COND, COND), h)
    middle = teacher(half, ask[1], COND, COND)
    v = stage.target(z, torch.zeros(len(z), dtype=torch.long), COND, COND.double())
    reached = rotate(z, v, 2 * h)
    back = rotate(z, math.cos(h) * middle - math.sin(h) * half, 2 * h)
    assert float((reached - back).abs().max()) < 2 * h**3
    assert float((reached - back).abs().max()) < float(
        (reached - rotate(half, middle, h)).abs().max()
    )


class ExactStudent:
    """For Gaussian data the teacher's sub-steps are affine in z: the exact one-step student."""

    passes = 1

    def __init__(self, stage: StepDistillation, teacher: Gaussian) -> None:
        self.answers: dict[float, tuple[float, float]] = {}
        for move in stage.moves:
            a, b = 1.0, 0.0
            points = stage.split(move.phi, move.to, stage.substeps)
            for phi, to in zip(points, points[1:], strict=False):
                c, s2 = math.cos(phi), teacher.std**2
                d = c * c * s2 + math.sin(phi) ** 2
                slope = c * math.sin(phi) * (1 - s2) / d
                shift = -slope * c * teacher.mean - math.sin(phi) * teacher.mean
                h = phi - to
                a, b = (
                    (math.cos(h) - math.sin(h) * slope) * a,
                    (math.cos(h) - math.sin(h) * slope) * b - math.sin(h) * shift,
                )
            total = move.phi - move.to
            # z' = a z + b = cos H z - sin H v
            self.answers[move.phi] = ((math.cos(total) - a) / math.sin(total), -b / math.sin(total))

    def __call__(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        rows = [min(self.answers.items(), key=lambda kv: abs(kv[0] - p))[1] for p in phi.tolist()]
        slope, shift = torch.tensor(rows, dtype=z.dtype).T
        return slope[:, None] * z + shift[:, None]


@pytest.mark.parametrize("how", STAGES, ids=lambda t: "-".join(map(str, t.values())))
def test_the_loss_is_zero_when_the_student_is_the_exact_map(how: dict[str, object]) -> None:
    teacher = Gaussian(0.3, 0.4)
    stage = StepDistillation(teacher, w_range=(0.0, 4.0), **how)  # type: ignore[arg-type]
    student = ExactStudent(stage, teacher)
    r = stage(X, COND, torch.Generator().manual_seed(2))
    assert float(loss(student(r.z, r.phi, r.cond, r.w), r.v_target, r.phi)) < 1e-26
    off = student(r.z, r.phi, r.cond, r.w) + 0.1
    assert float(loss(off, r.v_target, r.phi, snr_plus_one)) == pytest.approx(0.01, abs=1e-9)


def test_stochastic_moves_go_two_strides_and_the_last_one_goes_one() -> None:
    stage = StepDistillation(Gaussian(), 4, stride=2, w_range=(0, 1))
    g = cosine(4)
    assert [(m.phi, m.to) for m in stage.moves] == [
        (g[0], g[2]),
        (g[1], g[3]),
        (g[2], g[4]),
        (g[3], g[4]),
    ]


def test_encoders_go_from_each_angle_to_the_noisier_next() -> None:
    g = cosine(3)
    stage = StepDistillation(Gaussian(), 3, direction="encode", w_range=(0, 1))
    assert [(m.phi, m.to) for m in stage.moves] == [(g[3], g[2]), (g[2], g[1]), (g[1], g[0])]


def test_a_student_is_trained_on_just_the_moves_that_its_sampler_makes() -> None:
    from fewstep.core.samplers import SAMPLERS

    for name, stride, direction in (
        ("deterministic", 1, "decode"),
        ("stochastic", 2, "decode"),
        ("encode", 1, "encode"),
    ):
        stage = StepDistillation(Gaussian(), 6, stride=stride, direction=direction, w_range=(0, 1))  # type: ignore[arg-type]
        made = SAMPLERS[name].moves(cosine(6))
        assert [(m.phi, m.to) for m in stage.moves] == [(m.phi, m.to) for m in made]


def test_every_move_and_all_of_w_are_drawn() -> None:
    stage = StepDistillation(Gaussian(), 4, w_range=(1.0, 3.0))
    x = torch.zeros(4000, 1)
    r = stage(x, torch.zeros(4000), torch.Generator().manual_seed(0))
    counts = [int((r.phi == float(torch.tensor(m.phi))).sum()) for m in stage.moves]
    assert sum(counts) == 4000
    assert min(counts) > 850
    assert 1.0 <= float(r.w.min()) < 1.01
    assert 2.99 < float(r.w.max()) <= 3.0


def test_the_teacher_is_asked_at_the_same_w_and_cond_and_as_often_as_said() -> None:
    asked = []

    class Watched:
        passes = 2

        def __call__(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
            asked.append((cond, w, phi))
            return torch.zeros_like(z)

    counting = Counting(Watched())
    r = StepDistillation(counting, 4, substeps=3, w_range=(0, 4))(
        X, COND, torch.Generator().manual_seed(0)
    )
    assert counting.evaluations == 2 * 3 * len(X)
    for cond, w, _ in asked:
        assert torch.equal(cond, r.cond)  # type: ignore[arg-type]
        assert torch.equal(w, r.w)
    phis = torch.stack([phi for _, _, phi in asked])
    torch.testing.assert_close(phis[0], r.phi)
    torch.testing.assert_close(
        phis[0] - phis[1], torch.full((12,), math.pi / 24, dtype=torch.float64)
    )


def test_sub_steps_may_lie_where_one_says() -> None:
    def early(phi: float, to: float, parts: int) -> Grid:
        return tuple(phi + (to - phi) * (k / parts) ** 2 for k in range(parts + 1))

    check_stage(
        StepDistillation(MIXTURE.guided(), 3, substeps=4, w_range=(0, 4), split=early), X, COND
    )


class WithTraits(Gaussian):
    traits = Traits((3,), (0.0, 4.0))


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"steps": 0}, GridError, "at least 1 step"),
        ({"steps": 4, "substeps": 0}, RangeError, "substeps = 0"),
        ({"steps": 4, "stride": 0}, RangeError, "stride 0"),
        ({"steps": 4, "order": 3}, RangeError, "order = 3; it is 1 or 2"),
        (
            {"steps": 4, "order": 2, "direction": "encode"},
            RangeError,
            "order must be 1 for an encoder",
        ),
        ({"steps": 4, "direction": "up"}, RangeError, "direction must be 'decode'"),
        ({"steps": 4, "w_range": (0, 5)}, RangeError, "wider than the teacher"),
        ({"steps": 4, "w_range": (3, 1)}, RangeError, "low <= high"),
        ({"steps": 4, "w_range": 3}, RangeError, "low <= high"),
        ({"steps": 4, "w_range": (0, 1, 2)}, RangeError, "low <= high"),
        ({"steps": 4, "grid": (1.0, 0.0)}, GridError, "N \\+ 1"),
        ({"steps": 1, "grid": (0.0, 1.0)}, GridError, "fall"),
    ],
)
def test_a_stage_that_cannot_be(how: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        StepDistillation(WithTraits(), **how)  # type: ignore[arg-type]


def test_a_student_as_a_teacher_steps_by_itself() -> None:
    student = WithTraits()
    student.traits = Traits((3,), (0.0, 4.0), steps=(8,))  # type: ignore[misc]
    with pytest.raises(RangeError, match="with a teacher that was made for"):
        StepDistillation(student, 4, order=2)


def few_steps(steps: int, sampler: str | None = None) -> WithTraits:
    class Few(WithTraits):
        traits = Traits((3,), (0.0, 4.0), steps=(steps,), sampler=sampler)

    return Few()


@pytest.mark.parametrize(
    ("sampler", "how", "fits"),
    [
        (None, {"steps": 2}, True),
        (None, {"steps": 4, "substeps": 1}, True),
        (None, {"steps": 1, "substeps": 4}, True),
        (None, {"steps": 3}, False),
        (None, {"steps": 4}, False),
        (None, {"steps": 8}, False),
        (None, {"steps": 2, "substeps": 4}, False),
        (None, {"steps": 2, "substeps": 1}, False),  # steps twice as long as those it learnt
        (None, {"steps": 2, "stride": 2}, True),  # as the paper's stochastic students
        (None, {"steps": 4, "stride": 2}, False),
        (None, {"steps": 2, "direction": "encode"}, False),
        ("encode", {"steps": 2, "direction": "encode"}, True),
        ("encode", {"steps": 2}, False),
        ("stochastic", {"steps": 2}, False),
        ("stochastic", {"steps": 2, "substeps": 1}, True),
        (None, {"steps": 2, "grid": (1.5, 0.7, 0.0)}, False),
    ],
)
def test_a_few_step_teacher_is_asked_for_its_own_steps_alone(
    sampler: str | None, how: dict[str, object], fits: bool
) -> None:
    teacher = few_steps(4, sampler)
    if fits:
        StepDistillation(teacher, **how)  # type: ignore[arg-type]
        return
    with pytest.raises(GridError, match=r"steps that its teacher was trained for, 4 of"):
        StepDistillation(teacher, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [2, 4, 8, 16, 512])
def test_a_chain_on_a_table_asks_for_trained_steps(steps: int) -> None:
    """Grids of a table are nested too, though their angles are not equally spaced."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1024, dtype=torch.float64) ** 2
    phis = phi_from_alphas_cumprod(torch.cumprod(1 - betas, 0))

    class OnTable(WithTraits):
        traits = Traits((3,), (0.0, 4.0), steps=(2 * steps,), clock=lambda n: discrete(phis, n))

    def split(phi: float, to: float, parts: int) -> Grid:
        fine = discrete(phis, 2 * steps)
        near = [min(range(len(fine)), key=lambda k: abs(fine[k] - x)) for x in (phi, to)]
        assert parts == near[1] - near[0]
        return fine[near[0] : near[1] + 1]

    assert len(StepDistillation(OnTable(), steps, split=split).moves) == steps


def test_huge_numbers_are_refused_at_once() -> None:
    for how in ({"steps": 10**12}, {"steps": 4, "substeps": 10**12}, {"steps": True}):
        with pytest.raises((GridError, RangeError), match=r"at most|whole number"):
            StepDistillation(WithTraits(), **how)


def test_w_is_the_teachers_own_unless_said() -> None:
    assert StepDistillation(WithTraits(), 4).w_range == (0.0, 4.0)
    with pytest.raises(RangeError, match="must be given where the teacher has none"):
        StepDistillation(Gaussian(), 4)


@given(phi=st.floats(0.05, 1.5))
def test_truncated_snr_in_v_is_truncated_snr_in_x(phi: float) -> None:
    """max(SNR, 1) |x - x'|^2 = max(cos^2, sin^2) |v - v'|^2, for x = cos z - sin v."""
    p = torch.tensor([phi], dtype=torch.float64)
    snr = float(torch.cos(p) ** 2 / torch.sin(p) ** 2)
    dv = 0.7
    dx = math.sin(phi) * dv
    assert float(truncated_snr(p)) * dv**2 == pytest.approx(max(snr, 1.0) * dx**2, rel=1e-12)
    assert 0.5 <= float(truncated_snr(p)) <= 1.0
    assert float(snr_plus_one(p)) * dv**2 == pytest.approx((snr + 1) * dx**2, rel=1e-12)
