"""An update of fewstep's stages against what people run today, with the same networks.

"latent consistency" is the step of diffusers' example of that name: student, conditional pass,
unconditional pass, average as target network. "textbook halving" is progressive distillation of a
guided teacher without a stage one: two half-steps of the guided pair. Both are written anew from
what they compute, and both get the fused optimiser and the foreach average that fewstep has, so
that what is left is what they evaluate.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from measure import Peak, Result, Row, Setting, Table, Times, beside_training, bytes_of
from measure import evaluations as counted
from networks import SUBJECTS, Subject
from torch import Tensor, nn
from training_step import STAGES, W, config, kept

from fewstep.models.clocks.native import TIMESTEPS
from fewstep.models.w_input import w_features
from fewstep.train import train

ROUNDS = {"digits": 20, "cifar10-small": 7, "latent": 8}
SOLVER_STEPS = 64
TARGETS = {"evaluations": 5.0, "faster": 1.15}


class Rival:
    """A student with fused AdamW, clipping, and an average; `loss` is what the method adds."""

    networks: list[nn.Module]

    def __init__(self, setting: Setting, subject: Subject) -> None:
        self.setting, self.subject = setting, subject
        self.student, self.average = subject.fresh(), subject.fresh().requires_grad_(False)
        self.parameters = list(self.student.parameters())
        self.averaged = list(self.average.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, weight_decay=0.0, fused=True)
        steps = torch.arange(1, TIMESTEPS + 1, device=setting.device) / TIMESTEPS
        self.alpha, self.sigma = torch.cos(steps * math.pi / 2), torch.sin(steps * math.pi / 2)

    def loss(self) -> Tensor:
        """Return the method's loss on a new draw."""
        raise NotImplementedError

    def update(self) -> None:
        """Make one update of the student and of its average."""
        with self.setting.autocast():
            found = self.loss()
        found.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch._foreach_lerp_(self.averaged, [p.detach() for p in self.parameters], 0.05)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma of timesteps t (B,); -1 is clean."""
        wide = (-1, *[1] * (self.subject.x.ndim - 1))
        clean = (t < 0).reshape(wide)
        a, s = (table[t.clamp_min(0)].reshape(wide) for table in (self.alpha, self.sigma))
        return torch.where(clean, 1.0, a), torch.where(clean, 0.0, s)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return w (B,) and its features."""
        w = W[0] + (W[1] - W[0]) * torch.rand(self.subject.batch, device=self.setting.device)
        return w, w_features(w, self.student.network.config.time_cond_proj_dim)


class Consistency(Rival):
    """Latent consistency: the student's answer at t against the average's one solver step on."""

    def loss(self) -> Tensor:
        """Return the distance between the student's answer and its average's, one step on."""
        subject, stride = self.subject, TIMESTEPS // SOLVER_STEPS
        index = torch.randint(SOLVER_STEPS, (subject.batch,), device=self.setting.device)
        t = (index + 1) * stride - 1
        to = t - stride
        a, s = self.at(t)
        z = a * subject.x + s * torch.randn_like(subject.x)
        w, features = self.draw()
        v = subject.call(self.student, z, t, subject.cond, features)
        answer = self._boundary(t, z, a * z - s * v)
        with torch.no_grad():
            null = subject.null_cond.expand(subject.cond.shape)
            v_cond = subject.call(subject.teacher, z, t, subject.cond)
            v_null = subject.call(subject.teacher, z, t, null)
            mixed = v_cond + w.reshape(a.shape) * (v_cond - v_null)
            a_to, s_to = self.at(to)
            z_to = a_to * (a * z - s * mixed) + s_to * (s * z + a * mixed)
            v_to = subject.call(self.average, z_to, to.clamp_min(0), subject.cond, features)
            target = self._boundary(to.clamp_min(0), z_to, a_to * z_to - s_to * v_to)
        error = answer.float() - target.float()
        return (error.square() + 1e-6).sqrt().sub(1e-3).mean()

    @staticmethod
    def _boundary(t: Tensor, z: Tensor, x: Tensor) -> Tensor:
        scaled = (10.0 * t).reshape(-1, *[1] * (z.ndim - 1))
        skip = 0.25 / (scaled.square() + 0.25)
        return skip * z + scaled / (scaled.square() + 0.25).sqrt() * x


class Textbook(Rival):
    """Two half-steps of the guided pair, turned into a target for x; eight steps of the student."""

    def loss(self) -> Tensor:
        """Return the truncated-SNR error of x."""
        subject, steps = self.subject, 8
        stride = TIMESTEPS // steps
        t = (torch.randint(steps, (subject.batch,), device=self.setting.device) + 1) * stride - 1
        a, s = self.at(t)
        z = a * subject.x + s * torch.randn_like(subject.x)
        w, features = self.draw()
        with torch.no_grad():
            middle = self._half(z, t, t - stride // 2, w)
            end = self._half(middle, t - stride // 2, t - stride, w)
            a_end, s_end = self.at(t - stride)
            ratio = s_end / s
            target = (end - ratio * z) / (a_end - ratio * a)
        v = subject.call(self.student, z, t, subject.cond, features)
        weight = torch.maximum((a / s).square(), torch.ones_like(a))
        return (weight * ((a * z - s * v).float() - target.float()).square()).mean()

    def _half(self, z: Tensor, t: Tensor, to: Tensor, w: Tensor) -> Tensor:
        subject = self.subject
        null = subject.null_cond.expand(subject.cond.shape)
        both = torch.cat([subject.cond, null])
        v_cond, v_null = subject.call(
            subject.teacher, torch.cat([z, z]), torch.cat([t, t]), both
        ).chunk(2)
        a, s = self.at(t)
        a_to, s_to = self.at(to)
        v = v_cond + w.reshape(a.shape) * (v_cond - v_null)
        return a_to * (a * z - s * v) + s_to * (s * z + a * v)


RIVALS: dict[str, Callable[[Setting, Subject], Rival]] = {
    "latent consistency": Consistency,
    "textbook halving": Textbook,
}


def once(setting: Setting, subject: Subject, stage: str, folder: Path) -> tuple[float, int]:
    """Return the evaluations of one update of a stage, in forwards, and its peak memory."""
    problem, _ = STAGES[stage](setting, subject)
    student, peak = subject.fresh(), Peak(setting)
    marks: list[float] = []
    found: list[int] = []
    with counted(
        [n.network for n in (student, subject.teacher, subject.student)], subject.batch
    ) as c:

        def batch(update: int, part: int, parts: int) -> tuple[Tensor, Tensor]:
            del part, parts
            marks.append(c[0])
            if update == 1:
                peak.start()
            if update == 2:
                found.append(peak.stop())
            return subject.x, subject.cond

        device = setting.device.type
        told = config(setting, subject, 3)
        train(student, problem, batch, told, folder, device=device, progress=False)
    return marks[2] - marks[1], found[0]


def rows_of(setting: Setting, subject: Subject, folder: Path) -> tuple[list[Row], list[Row]]:
    """Return the rows of costs and the rows of ratios for one subject."""
    rivals = {name: make(setting, subject) for name, make in RIVALS.items()}
    costs, ratios = [], []
    size = bytes_of(list(subject.student.parameters()))
    for stage in STAGES:
        evaluated, peak = once(setting, subject, stage, folder / f"once {stage}")
        problem, _ = STAGES[stage](setting, subject)
        times = beside_training(
            setting,
            subject.fresh(),
            problem,
            kept(subject),
            config(setting, subject, ROUNDS[subject.name] + 3),
            folder / f"timed {stage}",
            {name: rival.update for name, rival in rivals.items()},
        )
        costs.append(_cost(f"{subject.name}, {stage}", times, "fewstep", evaluated, peak, size))
        costs[-1] |= {"target": "<= 5 evaluations", "met": evaluated <= TARGETS["evaluations"]}
        for name in rivals:
            row = times.ratio(f"{subject.name}, {name} / {stage}", name, "fewstep")
            if name == "latent consistency":
                row |= {"target": ">= 1.15", "met": row["ratio"] >= TARGETS["faster"]}
            ratios.append(row)
    for name, rival in rivals.items():
        networks = [rival.student, rival.average, subject.teacher, subject.student]
        with counted([n.network for n in networks], subject.batch) as c:
            rival.update()
        costs.append(
            _cost(
                f"{subject.name}, {name}", times, name, c[0], Peak(setting).of(rival.update), size
            )
        )
    return costs, ratios


def _cost(what: str, times: Times, side: str, evaluated: float, peak: int, size: int) -> Row:
    return {
        "what": what,
        "ms an update": 1e3 * statistics.median(times.wall[side]),
        "evaluations": evaluated,
        "peak MiB": peak / 2**20,
        # Weights and two moments, the average, the teacher: what all of them hold throughout.
        "held MiB": 5 * size / 2**20,
    }


def run(setting: Setting) -> Result:
    costs, ratios = [], []
    with tempfile.TemporaryDirectory() as temporary:
        for name, make in SUBJECTS.items():
            found = rows_of(setting, make(setting), Path(temporary) / name)
            costs += found[0]
            ratios += found[1]
    return Result(
        __doc__ + ABOUT,
        [Table("Cost of an update", costs), Table("Times as long as fewstep's update", ratios)],
    )


ABOUT = """
Evaluations are counted as they happen, in forward passes of one batch; a backward pass counts as
two. fewstep's update is that of `fewstep.train`, whole; the rivals have no loop around them. "peak"
is what an update needs above what is "held" all along: weights, two moments, an average, a teacher.
"""
