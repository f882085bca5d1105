"""How much memory a run will need, estimated before it starts, and how much it took.

The estimate runs one update on PyTorch's "meta" device, whose tensors hold no values, and counts
the bytes that would be in use at once. That takes no memory and hardly any time.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fewstep.core import cond as conds
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser, inside
from fewstep.core.seed import generator
from fewstep.distill.problem import WEIGHTINGS, AsksAverage, Problem, Regression, loss
from fewstep.errors import in_units
from fewstep.resident import resident_now, resident_peak
from fewstep.train.autocast import autocast
from fewstep.train.config import TrainConfig
from fewstep.train.optimizer import state_bytes
from fewstep.train.shard import units

SHORTER = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Estimate:
    """Bytes that a run holds on one device.

    Attributes:
        weights: of student and teacher; what they share is counted once.
        gradients: of what is trained.
        optimiser: AdamW's two moments.
        ema: the averaged weights.
        activations: the most that an update needs beside them at once, mostly activations saved
            for the backward pass; of one accumulated part. With `shard`, blocks that are gathered
            count here.
    """

    weights: int
    gradients: int
    optimiser: int
    ema: int
    activations: int

    @property
    def total(self) -> int:
        """The peak."""
        return self.weights + self.gradients + self.optimiser + self.ema + self.activations

    def __str__(self) -> str:
        """Return it in a line: about 1.2 GB (weights 430 MB, ...)."""
        names = ("weights", "gradients", "optimiser", "ema", "activations")
        parts = ", ".join(f"{name} {in_units(getattr(self, name))}" for name in names)
        return f"about {in_units(self.total)} ({parts})"


def estimate(
    student: nn.Module,
    problem: Problem,
    config: TrainConfig,
    x: Tensor,
    cond: Cond,
    *,
    processes: int = 1,
) -> Estimate:
    """Return how much memory training will need, on each device.

    Counts one update, forward and backward, including the teacher's passes. Not counted are the
    scratch memory of kernels, the memory of the libraries, and with `shard` the whole student and
    teacher, which stay in the memory of the CPU.

    Args:
        student: as for `train`; its activations are checkpointed from now on where the config has
            `checkpoint_activations`.
        problem: as for `train`.
        config: as for `train`.
        x: a batch of 1; only its shape and dtype matter.
        cond: a batch of 1.
        processes: number of processes that share a batch.
    """
    checkpoint = getattr(student, "checkpoint_activations", None)
    if config.checkpoint_activations and checkpoint is not None:
        checkpoint()
    update = _Update(student, problem, config)
    size = max(1, config.batch_size // (config.accumulate * processes))
    made = size * config.pool
    batch = x.to("meta").expand(made, *x.shape[1:])
    few = conds.repeat_null(conds.to(cond, torch.device("meta")), made)
    on = {n: _like(p) for n, p in (*update.named_parameters(), *update.named_buffers())}
    if config.accumulate > 1:
        # The gradients of the parts before are there already when the last one begins.
        for t in on.values():
            t.grad = torch.empty_like(t) if t.requires_grad else None
    with _flash(), Live() as live, torch.random.fork_rng(devices=[]):
        torch.func.functional_call(update, on, (batch, few))
    trained = [p for p in student.parameters() if p.requires_grad]
    gradients = sum(map(_bytes, trained))
    activations = max(0, live.peak - (gradients if config.accumulate == 1 else 0))
    weights = sum(_bytes(t) for t in (*update.parameters(), *update.buffers()))
    parts = processes if config.shard else 1
    if config.shard:
        cut = sum(map(_bytes, update.parameters()))
        weights = weights - cut + cut // parts
        # The teacher is asked before the student's blocks are gathered.
        activations += max(map(_gathered, filter(None, (student, update.teacher))))
    optimiser = sum(state_bytes(p.numel() // parts, config) for p in trained)
    gradients //= parts
    return Estimate(weights, gradients, optimiser, gradients, activations)


def _gathered(network: nn.Module) -> int:
    """Return the bytes that FSDP gathers at most: what is in no block, and blocks.

    The blocks are one at work, the next one, and the gradient of the one before.
    """
    blocks = [sum(map(_bytes, unit.parameters())) for unit in units(network)]
    inside = {p for unit in units(network) for p in unit.parameters()}
    rest = sum(_bytes(p) for p in network.parameters() if p not in inside)
    return rest + 3 * max(blocks, default=0)


class _Update(nn.Module):
    """Forward and backward of one update, of student and teacher."""

    def __init__(self, student: nn.Module, problem: Problem, config: TrainConfig) -> None:
        super().__init__()
        self.student, self.problem, self.config = student, problem, config
        self.pools: list[Regression] = []
        teacher: Any = inside(getattr(problem, "teacher", None))  # type: ignore[arg-type]
        self.teacher = teacher if isinstance(teacher, nn.Module) else None
        if isinstance(problem, AsksAverage):
            problem.lend(self._average)

    @contextmanager
    def _average(self) -> Iterator[Denoiser]:
        with torch.no_grad():
            yield cast(Denoiser, self.student)

    def forward(self, x: Tensor, cond: Cond) -> None:
        if self.config.pool == 1:
            r = self._made(x, cond)
        else:  # its batches are joined, and the parts before hold pools of their own
            every = torch.arange(len(x), device=x.device)
            x, cond = x[every], conds.take(cond, every)
            self.pools = [self._made(x, cond)]
            if self.config.accumulate > 1:
                others = range(self.config.accumulate - 2)
                self.pools += [self.pools[0].take(every) for _ in others]
                self.pools.append(self._made(x, cond))
            r = self.pools[-1].take(every[: len(x) // self.config.pool])
        with self._autocast(cache=not self.config.shard):
            v = self.student(*r.asked).to(x.dtype)
        of = loss(v, r.v_target, r.phi, WEIGHTINGS[self.config.weighting])
        with self._autocast(cache=False):  # of blocks that are computed again
            of.backward()

    def _made(self, x: Tensor, cond: Cond) -> Regression:
        with self._autocast(cache=not self.config.shard):
            return self.problem(x, cond, generator("cpu", 0))

    def _autocast(self, *, cache: bool) -> AbstractContextManager[None]:
        return autocast(SHORTER[self.config.precision], cache=cache)


@contextmanager
def _flash() -> Iterator[None]:
    """Compute attention as CPUs and GPUs do: on "meta" it would hold a matrix of all pairs.

    A mode of torch would not apply where the backward pass computes a block again.
    """
    plain = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
    """Return a tensor of the shape of attention's output; it saves the same inputs and output."""
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]
    return out


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are made under it: now, and at most.

    meta: also count tensors of the meta device, which take no memory themselves.
    """

    def __init__(self, *, meta: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._meta = meta
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = {id(t.untyped_storage()) for t in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for t in _tensors(out):
            storage = t.untyped_storage()
            counts = self._meta or not t.is_meta
            if counts and id(storage) not in given and storage not in self._seen:
                self._made(storage)
        return out

    def _made(self, storage: Any) -> None:
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size


class Watch:
    """The most memory that is in use from now on.

    On CUDA that is what the allocator has given out. Elsewhere it is how much larger the process
    is than it was without weights: libraries that are loaded meanwhile count as well. Linux keeps
    the peak of the whole life of a process, and some containers forbid to reset it: there a peak
    that stays below an earlier one is not known.

    Attributes:
        device: the one that is watched.
        bare: size of the process without weights, in bytes.
    """

    def __init__(self, device: torch.device, held: int, bare: int | None = None) -> None:
        """Begin to watch.

        held: bytes of the weights that are in memory already. bare: of an earlier watch, so that
        memory counts that the process did not give back since; by default the size now less `held`.
        """
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._before = 0 if device.type == "cuda" or _forget_peak() else resident_peak()
        self.bare = resident_now() - held if bare is None else bare
        self._held = held

    def peak(self) -> int | None:
        """Return the peak so far, in bytes; None where an earlier peak hides it."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        peak = resident_peak()
        # A process that gave memory back since it was bare is smaller than it was then.
        return max(peak - self.bare, self._held) if peak > self._before else None


def _forget_peak() -> bool:
    """Reset the peak, and return whether it is what is resident now."""
    with suppress(OSError):
        _CLEAR.write_text("5")
    return resident_peak() < resident_now() + 2**20


def _like(t: Tensor) -> Tensor:
    """Return a tensor like another on the meta device."""
    return torch.empty_like(t, device="meta").requires_grad_(t.requires_grad)


def _bytes(t: Tensor) -> int:
    return t.numel() * t.element_size()


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]
