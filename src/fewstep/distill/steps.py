"""Stage two: several steps of the teacher become one step of the student (math.md section 5).

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
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.angle import HALF_PI, add_noise, expand, renoise, rotate
from fewstep.core.cond import Cond, Copies
from fewstep.core.denoiser import Denoiser, Traits, coefficient_dtype, traits_of
from fewstep.core.grid import Grid, Split, check_grid, check_steps
from fewstep.core.samplers import Move, get_sampler
from fewstep.distill.draw import check_interval, gaussian, uniform
from fewstep.distill.problem import Regression
from fewstep.distill.trajectory import States, check_states, owners, visits
from fewstep.errors import GridError, RangeError

SAME_ANGLE = 1e-6  # radians; grids of N and 2N agree to float64's rounding
MAX_EVALUATIONS = 1_000_000


class Collapsed(NamedTuple):
    """Coefficients of one collapsed step, in float64: v = of_z z + of_d d."""

    of_z: float
    of_d: float


def collapse_coefficients(h: Sequence[float]) -> Collapsed:
    """Return the coefficients of the collapsed velocity for the sub-steps h (radians, one sign).

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
    return Collapsed((math.cos(total) - c) / math.sin(total), 1.0 / math.sin(total))


def extrapolation(h: Sequence[float]) -> list[float]:
    """Return r_k of a stride's sub-steps h, of order 2: how far to go on from v_k.

    `h_k / (2 h_(k-1))` is Adams and Bashforth's; the second sub-step also makes good for the first,
    which knows no velocity before its own and is a step of DDIM: `(h_0^2 + h_1^2) / (2 h_0 h_1)`.
    """
    out = [0.0, *(b / (2.0 * a) for a, b in zip(h, h[1:], strict=False))]
    if len(h) > 1:
        out[1] += h[0] / (2.0 * h[1])
    return out


def collapse(z: Tensor, velocities: Sequence[Tensor], h: Sequence[float]) -> Tensor:
    """Return the v (B, *D) whose one rotation by sum(h) does what the sub-steps did to z.

    velocities: met before each sub-step, (B, *D) each. h: radians. Source: math.md 5.
    """
    d = torch.zeros_like(z)
    for v, x in zip(velocities, h, strict=True):
        d = math.cos(x) * d + math.sin(x) * v
    of_z, of_d = collapse_coefficients(h)
    return of_z * z + of_d * d


def moves_on(grid: Grid, stride: int, direction: Literal["decode", "encode"]) -> list[Move]:
    """Return every move that a student of this grid (N + 1 angles) is trained for, in order."""
    n = len(grid) - 1
    if direction == "decode":
        return [Move(grid[i], grid[j], grid[j]) for i in range(n) for j in [min(i + stride, n)]]
    return [Move(grid[j], grid[i], grid[i]) for j in range(n, 0, -1) for i in [max(j - stride, 0)]]


def first_untrained(
    asked: Sequence[Grid], trained: Sequence[Move], stride: int
) -> tuple[float, float] | None:
    """Return the first sub-step (from, to) that a few-step teacher was not trained for, or None.

    asked: the angles of the sub-steps of each of the student's moves. trained: the teacher's moves.
    stride: of the student. With 1, each sub-step must be a move of the teacher. With more, it must
    start where one starts and go the same way: the paper's stochastic students of N steps learn
    from a teacher of 2N, in sub-steps that are twice as long as its own.
    """
    ends: dict[int, list[Move]] = {}
    for move in trained:
        ends.setdefault(round(move.phi / SAME_ANGLE), []).append(move)
    for points in asked:
        for phi, to in zip(points, points[1:], strict=False):
            place = round(phi / SAME_ANGLE)
            near = [m for k in (place - 1, place, place + 1) for m in ends.get(k, [])]
            if not any(_is_trained(m, phi, to, stride) for m in near):
                return phi, to
    return None


def _is_trained(move: Move, phi: float, to: float, stride: int) -> bool:
    if abs(move.phi - phi) >= SAME_ANGLE:
        return False
    if stride > 1:
        return (move.to > move.phi) == (to > phi)
    return abs(move.to - to) < SAME_ANGLE


def check_evaluations(steps: int, substeps: int) -> None:
    """Raise RangeError where steps times sub-steps are more than a table of them can hold."""
    if steps * substeps > MAX_EVALUATIONS:
        raise RangeError(
            f"steps times substeps must be at most {MAX_EVALUATIONS}, got {str(steps)[:20]} times "
            f"{str(substeps)[:20]}. Use fewer sub-steps."
        )


def _advice(traits: Traits) -> str:
    steps = max(traits.steps or (1,))
    if traits.sampler not in (None, "deterministic"):
        return "Give a teacher that can take any number of steps, or one of the same direction."
    if steps % 2 == 0:
        return f"Use steps={steps // 2} with substeps=2, or a teacher that can take any steps."
    return "Give a teacher that can take any number of steps."


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
        w: range of the guidance weight; by default the teacher's own.
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
    direction: Literal["decode", "encode"] = "decode"
    w: tuple[float, float] | None = None
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
        for name, value in (("substeps", self.substeps), ("stride", self.stride)):
            if value < 1:
                raise RangeError(f"{name} = {value}; it must be at least 1. Use 2, for example.")
        check_evaluations(self.steps, self.substeps)
        if not 0.0 <= self.dropout <= 1.0:
            raise RangeError(f"dropout = {self.dropout}; it must lie in [0, 1]. Use 0.5, say.")
        if self.direction not in ("decode", "encode"):
            raise RangeError(f"direction = {self.direction!r}; it is 'decode' or 'encode'.")
        if check_states(self.states) == "trajectory" and self._encodes and self.stride > 1:
            raise RangeError(
                f"an encoder of stride {self.stride} has no trajectories to learn on: after such a "
                "stride noise would have to be taken away. Use stride 1, or states: noised."
            )
        traits = traits_of(self.teacher)
        self._check_order(traits)
        w = self.w if self.w is not None else traits.w_range
        if w is None:
            raise RangeError(
                "w is not given and the teacher has no range of its own. Pass w, such as (0, 4)."
            )
        w = check_interval("w", w)
        if traits.w_range and not traits.w_range[0] <= w[0] <= w[1] <= traits.w_range[1]:
            raise RangeError(
                f"w = {w} is wider than the teacher's range {traits.w_range}. Narrow it."
            )
        grid = check_grid(self.grid or traits.clock(self.steps))
        if len(grid) != self.steps + 1:
            raise GridError(f"a grid of {len(grid)} angles for {self.steps} steps; it needs N + 1.")
        object.__setattr__(self, "w", w)
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "split", self.split or traits.split)
        self._check_parent(traits)
        self._table(torch.device("cpu"), torch.float64)

    def _check_parent(self, traits: Traits) -> None:
        """Raise GridError where a few-step teacher would make moves that it was not trained for."""
        if traits.steps is None:
            return
        assert self.split is not None
        asked = [self.split(m.phi, m.to, self.substeps) for m in self.moves]
        off: tuple[float, float] | None = None
        for steps in traits.steps:
            made = get_sampler(traits.sampler or "deterministic").moves(traits.clock(steps))
            off = first_untrained(asked, made, self.stride)
            if off is None:
                return
        if off is not None:
            counts = " or ".join(map(str, traits.steps))
            raise GridError(
                f"the sub-steps of a student must be steps that its teacher was trained for, "
                f"{counts} of the sampler {traits.sampler or 'deterministic'!r}, got steps = "
                f"{self.steps}, substeps = {self.substeps}, stride = {self.stride}, direction = "
                f"{self.direction!r}, which asks for a step from angle {off[0]:.4g} to "
                f"{off[1]:.4g}. {_advice(traits)}"
            )

    def _check_order(self, traits: Traits) -> None:
        if self.order not in (1, 2):
            raise RangeError(f"order = {self.order}; it is 1 or 2.")
        if self.order == 2 and traits.steps is not None:
            raise RangeError(
                f"order = 2 with a teacher made for {traits.steps} steps: its steps are its own, "
                "and DDIM's. Use order 1, or a teacher that can take any steps."
            )
        if self.order == 2 and self._encodes:
            raise RangeError(
                "order = 2 for an encoder: it starts at the clean image, where the teacher knows "
                "no velocity to go on from. Use order 1 and more sub-steps."
            )

    @property
    def _encodes(self) -> bool:
        return self.direction == "encode"

    @property
    def moves(self) -> list[Move]:
        """Every move that the student is trained for, noisiest start first."""
        assert self.grid is not None
        return moves_on(self.grid, self.stride, self.direction)

    def _table(self, device: torch.device, dtype: torch.dtype) -> _Table:
        assert self.split is not None
        if (device, dtype) not in self._tables:
            points = [self.split(m.phi, m.to, self.substeps) for m in self.moves]
            h = [[a - b for a, b in zip(p, p[1:], strict=False)] for p in points]
            cos = [[math.cos(x) for x in row] for row in h]
            before = [[math.prod(row[:k]) for k in range(self.substeps)] for row in cos]
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
        assert self.w is not None
        if self.states == "trajectory":
            return self._walked(x, cond, generator)
        table = self._table(x.device, coefficient_dtype(x))
        rows = len(table.phi)
        index = torch.randint(rows, (len(x),), generator=generator, device=x.device)
        w = uniform(self.w, x, generator)
        phi = table.phi[index, 0]
        z = add_noise(x, gaussian(x, generator), phi)
        cond = self._dropped(x, cond, generator)
        return Regression(z, phi, cond, w, self.target(z, index, cond, w))

    def _walked(self, x: Tensor, cond: Cond, generator: torch.Generator) -> Regression:
        assert self.w is not None
        moves = self.moves
        counts = visits(len(x), len(moves))
        x, cond = x[: counts[0]], conds.take(cond, slice(counts[0]))
        w = uniform(self.w, x, generator)
        z = gaussian(x, generator)
        cond = self._dropped(x, cond, generator)
        if self._encodes:
            z = x
        states, targets = [], []
        for k, (move, count) in enumerate(zip(moves, counts, strict=True)):
            z, index = z[:count], torch.full((count,), k, device=x.device)
            v = self.target(z, index, conds.take(cond, slice(count)), w[:count])
            states.append(z)
            targets.append(v)
            z = rotate(z, v, move.phi - move.to)
            if k + 1 < len(moves) and moves[k + 1].phi > move.to and not self._encodes:
                # The stochastic sampler's way back up, by noise of its own for each move.
                z = renoise(z, gaussian(z, generator), move.to, moves[k + 1].phi)
        row = owners(counts, x.device)
        starts = self._table(x.device, coefficient_dtype(x)).phi[:, 0]
        phi = torch.cat([start.expand(n) for start, n in zip(starts, counts, strict=True)])
        return Regression(torch.cat(states), phi, conds.take(cond, row), w[row], torch.cat(targets))

    def _dropped(self, x: Tensor, cond: Cond, generator: torch.Generator) -> Cond:
        """Return cond with the label dropped here and there; as it is without a null_cond."""
        if self.null_cond is None:
            return cond
        dropped = uniform((0.0, 1.0), x, generator) < self.dropout
        return conds.replace(cond, dropped, conds.once(self.null_cond, x.device, self._nulls))

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
                    # Constant x and eps seen from here: v - turned is what has changed.
                    turned = expand(sin[k - 1], z) * before[0] + expand(cos[k - 1], z) * before[1]
                    u = v + expand(r[k], z) * (v - turned)
                d = expand(cos[k], z) * d + expand(sin[k], z) * u
        return expand(rows.of_z, z) * z + expand(rows.of_d, z) * d
