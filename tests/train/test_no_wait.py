"""The training step never makes the host wait for the device.

Without a GPU to see it on, the step is watched operation by operation: none may read a tensor's
value, or have a shape that depends on values, or copy between devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fewstep
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Guided
from fewstep.core.seed import generator
from fewstep.distill.guidance import GuidanceDistillation
from fewstep.distill.matching import DistributionMatching, StudentAndScore
from fewstep.distill.plan import Stage
from fewstep.distill.pretrain import Pretrain
from fewstep.distill.problem import Problem, loss
from fewstep.distill.samples import SampleDistillation
from fewstep.distill.steps import StepDistillation
from fewstep.models import Card, Model, UNetConfig, build_unet, with_w_input
from fewstep.train import TrainConfig, train
from fewstep.train.loop import _Loop

WAITS = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"),
    *("nonzero", "masked_select", "argwhere", "unique_dim", "_unique2", "unique_consecutive"),
}
TINY = UNetConfig(channels=(8, 16), groups=4, w_dim=32)
BATCH = 4


class NoWait(TorchDispatchMode):
    """Raise at an operation for which a host would wait for its GPU."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if name in WAITS:
            raise AssertionError(f"{func} waits for the device")
        if name in ("index", "index_put_") and any(t.dtype == torch.bool for t in given[1:]):
            raise AssertionError(f"{func} by a mask waits for the device")
        out = func(*args, **(kwargs or {}))
        # Numbers that stand alone are fed to kernels by value.
        met = [*given, *(t for t in tree_leaves(out) if isinstance(t, Tensor))]
        if len({t.device.type for t in met if t.ndim}) > 1:
            raise AssertionError(f"{func} copies between devices")
        return out


def teacher(device: str) -> Model:
    card = Card(
        fewstep=fewstep.__version__, family="unet-class", name="tiny",
        clock="native-1024", shape=(1, 8, 8), num_classes=10, null_class=10,
    )  # fmt: skip
    return Model(build_unet(TINY, (1, 8, 8), 10), card).eval().to(device)


def student(of: Model) -> Model:
    card = of.card.model_copy(update={"stage": Stage(None, "teacher"), "w_range": (0.0, 4.0)})
    return Model(with_w_input(of, TINY.w_dim), card)


def pretrain(of: Model) -> Problem:
    return Pretrain(of.null_cond)


def guidance(of: Model) -> Problem:
    return GuidanceDistillation(Guided(of, of.null_cond, interval=(0.1, 1.4), threshold=torch.tanh))


def steps(of: Model) -> Problem:
    return StepDistillation(student(of).eval(), steps=4)


def encode(of: Model) -> Problem:
    return StepDistillation(student(of).eval(), steps=4, direction="encode")


def pair(of: Model) -> Problem:
    return StepDistillation(of, steps=4, w_range=(0.0, 0.0), null_cond=of.null_cond)


def stochastic(of: Model) -> Problem:
    return StepDistillation(
        Guided(of, of.null_cond), steps=4, stride=2, substeps=4, w_range=(0.0, 4.0)
    )


def guidance_walked(of: Model) -> Problem:
    return GuidanceDistillation(Guided(of, of.null_cond), states="trajectory", walk=BATCH)


def steps_walked(of: Model) -> Problem:
    return StepDistillation(student(of).eval(), steps=4, stride=2, states="trajectory")


def samples(of: Model) -> Problem:
    return SampleDistillation(Guided(of, of.null_cond))


def matching(of: Model) -> Problem:
    networks = StudentAndScore(student(of), student(of))
    return DistributionMatching(student(of).eval(), networks)


PROBLEMS = (
    *(pretrain, guidance, steps, encode, pair, stochastic, guidance_walked, steps_walked),
    *(samples, matching),
)


@pytest.mark.parametrize("stage", PROBLEMS)
def test_targets_loss_and_gradient_stay_on_the_device(
    stage: Callable[[Model], Problem],
) -> None:
    """On the device that holds no values at all; conditions of the problem begin on the host."""
    of = teacher("meta")
    problem = stage(of)
    learner = getattr(problem, "networks", None) or student(of)
    x, cond = torch.zeros(BATCH, 1, 8, 8, device="meta"), torch.zeros(BATCH, device="meta").long()

    def update() -> None:
        r = problem(x, cond, generator("cpu", 0))
        loss(learner(r.z, r.phi, r.cond, r.w), r.v_target, r.phi).backward()

    update()  # tables and null conditions are copied once
    with NoWait():
        update()
    assert all(p.grad is not None and p.grad.is_meta for p in learner.parameters())


def batch(update: int, part: int, parts: int) -> tuple[Tensor, Cond]:
    return torch.full((BATCH // parts, 1, 8, 8), 0.1), torch.arange(BATCH // parts)


CONFIG = TrainConfig(updates=4, batch_size=BATCH, log_every=100, warmup=0)


def step_under(
    monkeypatch: pytest.MonkeyPatch, watch: Callable[[], Any]
) -> tuple[Callable[[_Loop], None], list[int]]:
    plain, seen = _Loop._step, []

    def step(self: _Loop) -> None:
        if self.update == 0:
            return plain(self)
        seen.append(self.update)
        with watch():
            return plain(self)

    monkeypatch.setattr(_Loop, "_step", step)
    return step, seen


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stage", [guidance, steps])
def test_no_value_is_read_in_a_step_of_the_loop(
    stage: Callable[[Model], Problem],
    accumulate: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = teacher("cpu")
    _, seen = step_under(monkeypatch, NoWait)
    config = CONFIG.model_copy(update={"accumulate": accumulate})
    train(student(of), stage(of), batch, config, tmp_path, device="cpu", progress=False)
    assert seen == [1, 2, 3]


@contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [guidance, steps])
def test_no_step_synchronises_a_gpu(
    stage: Callable[[Model], Problem],
    precision: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = teacher("cuda")
    _, seen = step_under(monkeypatch, no_synchronisation)
    config = CONFIG.model_copy(update={"precision": precision})
    train(student(of), stage(of), batch, config, tmp_path, device="cuda", progress=False)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.to("meta"),
        lambda x: torch.tensor([1.0, 2.0]).to("meta"),
        lambda x: x.tolist() if x.to("meta").is_meta else None,
    ],
)
def test_the_watch_sees_what_it_should(waits: Callable[[Tensor], object]) -> None:
    with pytest.raises(AssertionError, match=r"waits|copies"), NoWait():
        waits(torch.ones(3))
