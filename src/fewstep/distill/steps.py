"""Step distillation, stage two: several teacher steps become one of the student (math.md 5).

With sub-steps h_k and velocities v_k met on the way, the teacher stands at `y = c z - d`, where
`c = prod cos h_k` and `d <- cos h_k d + sin h_k v_k`. One rotation by H = sum h_k reaches the
same point if its velocity is `((cos H - c) z + d) / sin H`: nothing in it cancels, and with
h < 0 the same formula trains the encoder.

Of order 2, sub-step k > 0 turns by `u_k = v_k + r_k (v_k - v'_(k-1))` in place of v_k, where v' is
the velocity before, turned here by DDIM's rotation. It costs no evaluation, and the error of the
teacher's own steps falls by another power of their number (docs/mathematics.md section 5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.angle import HALF_PI, add_noise, expand, renoise, rotate
from fewstep.core.cond import Cond, Copies
from fewstep.core.denoiser import Denoiser, Traits, coefficient_dtype, traits_of
from fewstep.core.grid import Grid, Split, check_grid, check_steps
from fewstep.core.samplers import Move, get_sampler
from fewstep.distill.draw import (
    check_dropout,
    check_range_of_teacher,
    check_velocity,
    drop,
    gaussian,
    uniform,
)
from fewstep.distill.problem import Kind, Regression
from fewstep.distill.trajectory import States, check_states, check_walk, pack, visits
from fewstep.errors import GridError, RangeError, RecipeError

if TYPE_CHECKING:
    from fewstep.distill.plan import Stage

SAME_ANGLE = 1e-6  # radians; grids of N and 2N agree to float64's rounding
MAX_EVALUATIONS = 1_000_000
Direction = Literal["decode", "encode"]


def collapse_coefficients(h: Sequence[float]) -> tuple[float, float]:
    """Return (a, b) of the collapsed velocity a z + b d for the sub-steps h (radians, one sign).

    Raises GridError where the sub-steps turn both ways, by nothing, or by more than pi/2.
    """
    total = math.fsum(h)
    turns = bool(h) and (all(x > 0 for x in h) or all(x < 0 for x in h))
    if not turns or abs(total) > HALF_PI + 1e-12:
        raise GridError(
            f"sub-steps {tuple(h)}; they must all have one sign, none 0, and add up to at most "
            "pi/2. Check the grid."
        )
    c = math.prod(math.cos(x) for x in h)
    return (math.cos(total) - c) / math.sin(total), 1.0 / math.sin(total)


def extrapolation(h: Sequence[float]) -> list[float]:
    """Return r_k of a stride's sub-steps h, of order 2: how far to go on from v_k.

    `h_k / (2 h_(k-1))` is Adams and Bashforth's; the second sub-step also makes good for the first,
    which knows no velocity before its own and is a step of DDIM: `(h_0^2 + h_1^2) / (2 h_0 h_1)`.
    """
    out = [0.0, *(b / (2.0 * a) for a, b in zip(h, h[1:], strict=False))]
    if len(h) > 1:
        out[1] += h[0] / (2.0 * h[1])
    return out


def extrapolated(
    v: Tensor,
    before: tuple[Tensor, Tensor],
    cos: float | Tensor,
    sin: float | Tensor,
    r: float | Tensor,
) -> Tensor:
    """Return u (B, *D), the velocity of a sub-step of second order.

    v: the velocity at the state. before: state and velocity one sub-step earlier. cos, sin: of that
    sub-step. r: see `extrapolation`. cos, sin and r are numbers, or tensors that broadcast with v.
    """
    # With constant x and eps the earlier velocity would now be this; what differs has changed.
    turned = sin * before[0] + cos * before[1]
    return v + r * (v - turned)


def sampler_of(stride: int, direction: Direction) -> str:
    """Return the name of the sampler whose moves a student learns. Raises RangeError for none."""
    names = {(1, "decode"): "deterministic", (2, "decode"): "stochastic", (1, "encode"): "encode"}
    if (stride, direction) not in names:
        raise RangeError(
            "direction must be 'decode' with stride 1 (the deterministic sampler) or 2 (the "
            f"stochastic one), or 'encode' with stride 1, got {direction!r} with stride {stride}. "
            "Use one of them."
        )
    return names[stride, direction]


def _untrained(asked: Sequence[Grid], trained: Sequence[Move], stride: int) -> Grid | None:
    """Return the first sub-step (from, to) that a few-step teacher was not trained for, or None.

    asked: the angles of the sub-steps of each of the student's moves. trained: the teacher's moves.
    stride: of the student. With 1, each sub-step must be a move of the teacher. With 2, it must
    start where one starts and go the same way: the paper's stochastic students of N steps learn
    from a teacher of 2N, in sub-steps that are twice as long as its own.
    """
    made: dict[int, Move] = {round(move.phi / SAME_ANGLE): move for move in trained}
    for points in asked:
        for phi, to in zip(points, points[1:], strict=False):
            place = round(phi / SAME_ANGLE)
            move = next((made[k] for k in (place, place - 1, place + 1) if k in made), None)
            ends = stride == 2 or (move is not None and abs(move.to - to) < SAME_ANGLE)
            if move is None or not ends or (move.to > move.phi) != (to > phi):
                return phi, to
    return None


class _Table(NamedTuple):
    """One row a starting angle: all that a drawn move needs, computed in float64."""

    phi: Tensor  # (M, n) angle before each sub-step
    cos: Tensor  # (M, n) of each sub-step
    sin: Tensor  # (M, n)
    c: Tensor  # (M, n) product of the cosines before each sub-step
    r: Tensor  # (M, n) of the extrapolation
    of_z: Tensor  # (M,)
    of_d: Tensor  # (M,)


@dataclass(frozen=True)
class StepDistillation:
    """Regression on several DDIM steps of the teacher, collapsed into one, at the same w and c.

    Attributes:
        teacher: a student of twice the steps, the stage-one model, or a `Guided` pair.
        steps: N, of the student.
        substeps: teacher steps that one student step replaces.
        stride: grid steps that one student step goes: 1 for the deterministic sampler, 2 for the
            stochastic one (whose last move, from the last angle but one, goes a single step).
        direction: "decode" goes to clean; "encode" goes to noise.
        w_range: of the guidance weight; by default the teacher's own.
        grid: decreasing angles of the student, N + 1; by default the teacher's clock at N.
        split: where the sub-steps of a move lie; by default as the teacher's traits say.
        null_cond: a condition batch of 1 that stands in for the label with probability
            `dropout`: for a teacher that is one network, conditional or not, and a student that
            is to be guided by two passes of its own.
        dropout: how often; without null_cond it is not used.
        states: "noised" puts noise on the data at a drawn angle; "trajectory" walks a few examples
            along the whole grid by the teacher's own steps, each of them a state and its target.
            The walk begins as sampling does: at pure noise, and the images of a batch then give
            their shape alone; or, encoding, at the images.
    """

    teacher: Denoiser
    steps: int
    substeps: int = 2
    stride: int = 1
    direction: Direction = "decode"
    w_range: tuple[float, float] | None = None
    grid: Grid | None = None
    split: Split | None = None
    null_cond: Cond | None = None
    dropout: float = 0.5
    states: States = "noised"
    order: Literal[1, 2] = 1
    _tables: dict[tuple[torch.device, torch.dtype], _Table] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _nulls: Copies = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise GridError or RangeError where the attributes do not make a stage."""
        check_steps(self.steps)
        if not 1 <= self.substeps <= MAX_EVALUATIONS // self.steps:
            raise RangeError(
                f"substeps = {str(self.substeps)[:20]}; it must be at least 1, and with the steps "
                f"make at most {MAX_EVALUATIONS}. Use 2, for example."
            )
        if self.order not in (1, 2):
            raise RangeError(f"order = {self.order}; it is 1 or 2.")
        check_dropout(self.dropout)
        check_states(self.states)
        sampler_of(self.stride, self.direction)
        traits = traits_of(self.teacher)
        w_range = self.w_range if self.w_range is not None else traits.w_range
        if w_range is None:
            raise RangeError("w_range must be given where the teacher has none. Pass (0, 4).")
        low, high = check_range_of_teacher(w_range, traits)
        grid = check_grid(self.grid or traits.clock(self.steps))
        if len(grid) != self.steps + 1:
            raise GridError(f"a grid of {len(grid)} angles for {self.steps} steps; it needs N + 1.")
        object.__setattr__(self, "w_range", (low, high))
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "split", self.split or traits.split)
        self._check_teacher(traits)
        self._table(torch.device("cpu"), torch.float64)

    def _check_teacher(self, traits: Traits) -> None:
        """Raise GridError where a few-step teacher would make moves that it was not trained for."""
        check_velocity(traits)
        if self.order == 2 and (self.direction == "encode" or traits.steps is not None):
            raise RangeError(
                "order must be 1 for an encoder, which starts without a velocity to go on from, "
                "and with a teacher that was made for a number of steps, whose steps are DDIM's, "
                "got 2. Use order 1, or more sub-steps of a teacher that can take any steps."
            )
        if traits.steps is None:
            return
        assert self.split is not None
        asked = [self.split(m.phi, m.to, self.substeps) for m in self.moves]
        name = traits.sampler or "deterministic"
        made = [get_sampler(name).moves(traits.clock(n)) for n in traits.steps]
        off = [_untrained(asked, moves, self.stride) for moves in made]
        if off and None not in off:
            phi, to = off[-1] or (0.0, 0.0)
            counts, most = " or ".join(map(str, traits.steps)), max(traits.steps)
            advice = "Use a teacher that can take any number of steps"
            if most % 2 == 0 and name == "deterministic":
                advice += f", or steps={most // 2} with substeps=2"
            raise GridError(
                "the sub-steps of a student must be steps that its teacher was trained for, "
                f"{counts} of the sampler {name!r}, got steps = {self.steps}, substeps = "
                f"{self.substeps}, stride = {self.stride}, direction = {self.direction!r}, which "
                f"asks for a step from angle {phi:.4g} to {to:.4g}. {advice}."
            )

    @property
    def moves(self) -> list[Move]:
        """Every move that the student is trained for, in the order of its sampler."""
        assert self.grid is not None
        return get_sampler(sampler_of(self.stride, self.direction)).moves(self.grid)

    def _table(self, device: torch.device, dtype: torch.dtype) -> _Table:
        assert self.split is not None
        if (device, dtype) not in self._tables:
            points = [self.split(m.phi, m.to, self.substeps) for m in self.moves]
            h = [[a - b for a, b in zip(p, p[1:], strict=False)] for p in points]
            cos = [[math.cos(x) for x in row] for row in h]
            before = [[1.0, *accumulate(row[:-1], mul)] for row in cos]
            of_z, of_d = zip(*(collapse_coefficients(row) for row in h), strict=True)
            sin = [[math.sin(x) for x in row] for row in h]
            r = [extrapolation(row) for row in h]
            columns = ([p[:-1] for p in points], cos, sin, before, r, of_z, of_d)
            self._tables[device, dtype] = _Table(
                *(torch.tensor(t, dtype=torch.float64).to(device, dtype) for t in columns)
            )
        return self._tables[device, dtype]

    def __call__(self, x: Tensor, cond: Cond, generator: torch.Generator) -> Regression:
        """Return the regression for clean x (B, *D), at substeps x teacher.passes evaluations.

        Raises RangeError for a batch that cannot hold one trajectory, where states are of those.
        """
        assert self.w_range is not None
        if self.states == "trajectory":
            return self._walked(x, cond, generator)
        table = self._table(x.device, coefficient_dtype(x))
        rows = len(table.phi)
        index = torch.randint(rows, (len(x),), generator=generator, device=x.device)
        w = uniform(self.w_range, x, generator)
        phi = table.phi[index, 0]
        z = add_noise(x, gaussian(x, generator), phi)
        cond = drop(cond, self.null_cond, self.dropout, x, generator, self._nulls)
        return Regression(z, phi, cond, w, self.target(z, index, cond, w))

    def _walked(self, x: Tensor, cond: Cond, generator: torch.Generator) -> Regression:
        assert self.w_range is not None
        moves = self.moves
        counts = visits(len(x), len(moves))
        x, cond = x[: counts[0]], conds.take(cond, slice(counts[0]))
        w = uniform(self.w_range, x, generator)
        z = gaussian(x, generator)
        cond = drop(cond, self.null_cond, self.dropout, x, generator, self._nulls)
        starts = self._table(x.device, coefficient_dtype(x)).phi[:, :1].expand(-1, len(x))

        def target(k: int, z: Tensor, _: Tensor, cond: Cond, w: Tensor) -> Tensor:
            return self.target(z, torch.full((len(z),), k, device=z.device), cond, w)

        def step(k: int, z: Tensor, v: Tensor) -> Tensor:
            phi, to, back = moves[k]
            z = rotate(z, v, phi - to)
            # The stochastic sampler's way back up, by noise of its own for each move.
            return renoise(z, gaussian(z, generator), to, back) if back > to else z

        z = x if self.direction == "encode" else z
        return pack(counts, z, list(starts), cond, w, target, step)

    def target(self, z: Tensor, index: Tensor, cond: Cond, w: Tensor) -> Tensor:
        """Return v_target (B, *D) for states z (B, *D) that start move `index` (B,) of `moves`."""
        rows = _Table(*(column[index] for column in self._table(z.device, coefficient_dtype(z))))
        phi, cos, sin, c, r = (column.unbind(1) for column in rows[:5])
        with torch.no_grad():
            y, v = z, self.teacher(z, phi[0], cond, w)
            d = expand(sin[0], z) * v
            for k in range(1, self.substeps):
                before, y = (y, v), expand(c[k], z) * z - d
                u = v = self.teacher(y, phi[k], cond, w)
                if self.order == 2:
                    turn = expand(cos[k - 1], z), expand(sin[k - 1], z)
                    u = extrapolated(v, before, *turn, expand(r[k], z))
                d = expand(cos[k], z) * d + expand(sin[k], z) * u
        return expand(rows.of_z, z) * z + expand(rows.of_d, z) * d


def _problem(
    stage: Stage, teacher: Denoiser, w_range: tuple[float, float], null_cond: Cond | None
) -> StepDistillation:
    if stage.steps is None:
        raise RecipeError("step distillation needs steps, got none. Add it, such as steps: 4.")
    same = stage.model_dump(include={"steps", "substeps", "order", "stride", "direction"})
    w_range, null_cond = ((0.0, 0.0), null_cond) if stage.pair else (w_range, None)
    states = stage.states or "noised"
    return StepDistillation(teacher, **same, w_range=w_range, null_cond=null_cond, states=states)


def _default_name(stage: Stage) -> str:
    """Return student-4, student-4-stochastic, encoder-4, pair-4, ..."""
    if stage.direction == "encode":
        return f"encoder-{stage.steps}"
    name = f"{'pair' if stage.pair else 'student'}-{stage.steps}"
    return f"{name}-stochastic" if stage.stride == 2 else name


step_distillation = Kind(
    "step-distillation",
    _problem,
    _default_name,
    frozenset({"steps", "substeps", "order", "stride", "direction", "pair"}),
    lambda stage: sampler_of(stage.stride, stage.direction),
    calls=lambda stage, batch: batch * stage.substeps,
    check_part=lambda stage, part: check_walk(stage.states, part, stage.steps or 1),
)
