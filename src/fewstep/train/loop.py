"""One loop for the teacher, stage one and stage two.

Exact resume works by counting: batch, noise, learning rate and averaging are functions of (seed,
update), so a run that is killed at any moment and started again ends with the same bits.
"""

from __future__ import annotations

import copy
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from fewstep.core import cond as conds
from fewstep.core.cond import Cond
from fewstep.core.seed import derive, generator
from fewstep.distill.problem import WEIGHTINGS, Problem, loss
from fewstep.errors import Interrupted, NonFiniteError, RangeError, TimeUp
from fewstep.train.checkpoint import (
    Checkpoint,
    check_moments,
    load_checkpoint,
    save_checkpoint,
)
from fewstep.train.config import TrainConfig
from fewstep.train.limit import is_time_up
from fewstep.train.log import Log, read_metrics
from fewstep.train.processes import (
    piece,
    processes,
    shared_like,
    summed,
    translate_peer_failures,
    whole,
)
from fewstep.train.progress import Progress
from fewstep.train.schedule import ema_at, lr_at

Batch: TypeAlias = Callable[[int, int, int], tuple[Tensor, Cond]]


class TrainResult(NamedTuple):
    """A finished run: the trained module, its averaged weights (EMA), and the losses read."""

    student: nn.Module
    ema_state: dict[str, Tensor]
    update: int
    losses: list[tuple[int, float]]


def train(
    student: nn.Module,
    problem: Problem,
    batch: Batch,
    config: TrainConfig,
    folder: Path | str,
    *,
    seed: int = 0,
    fingerprint: str = "",
    device: str | None = None,
    progress: bool = True,
    label: str = "train",
) -> TrainResult:
    """Train a denoiser on a problem; the same call resumes where an earlier one stopped.

    Args:
        student: an nn.Module that is a denoiser; trained in place. Its frozen parameters (no
            `requires_grad`) are not optimised, averaged or saved in checkpoints.
        problem: `Pretrain`, `GuidanceDistillation`, `StepDistillation`, or your own.
        batch: (update, part, parts) -> (x, cond), part number `part` of the update's examples,
            batch_size / parts of them; a pure function. The number of parts is the number of
            processes times `accumulate`. The result depends on the number of parts, and not on
            which process computes which part.
        config: the settings.
        folder: of checkpoints, metrics.jsonl and TensorBoard.
        seed: of every draw that the problem makes.
        fingerprint: hash of what else the run depends on (data, parents); a checkpoint of another
            fingerprint, seed or config is refused.
        device: "cpu", "cuda" or "cuda:N"; None takes a GPU where there is one.
        progress: show a bar where stderr is a terminal, and lines where it is a file.
        label: of the bar and the lines.

    Raises:
        NonFiniteError: the loss or the gradient is not finite; the last good checkpoint stays.
        CheckpointError: no checkpoint of the folder can be read, or they are of another run.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written first.
        TimeUp: the `time_limit` around this call has passed; a checkpoint was written first.
        RangeError: a precision that the device does not have; a batch size that the parts do not
            divide; a setting that this student or number of processes cannot have; a student
            with nothing to train.
        ProcessLostError: another process of the run ended.
    """
    # Dropout draws from the global generator; the caller's own draws are left alone.
    with translate_peer_failures(), torch.random.fork_rng(), _stop_requests() as stopping:
        run_key = {**config.identity(), "seed": seed, "fingerprint": fingerprint}
        loop = _Loop(student, problem, batch, config, Path(folder), run_key, device)
        loop.run(label=label if progress else None, stopping=stopping)
        return loop.result()


class _Loop:
    def __init__(
        self,
        student: nn.Module,
        problem: Problem,
        batch: Batch,
        config: TrainConfig,
        folder: Path,
        run_key: dict[str, Any],
        device: str | None,
    ) -> None:
        self.problem, self.batch, self.config, self.folder, self.seed = (
            problem, batch, config, folder, run_key["seed"],
        )  # fmt: skip
        self.accelerator = _accelerator(config, device)
        self.device = self.accelerator.device
        self.parts = self.accelerator.num_processes * config.accumulate
        self.run_key = {**run_key, "parts": self.parts}
        self.names = [name for name, p in student.named_parameters() if p.requires_grad]
        self.frozen = {name for name, p in student.named_parameters() if not p.requires_grad}
        self._check_trainable(student)
        self.student = student.train()
        found = load_checkpoint(self.folder / "checkpoints", self.run_key, torch.device("cpu"))
        if found is not None:
            found = found.with_names(student.state_dict())
            # Frozen weights are not in checkpoints; the run's key counts the others.
            self.student.load_state_dict(found.weights, strict=not self.frozen)
        self.trained, self.model = self._prepare()
        self.parameters: list[Tensor] = [p for p in self.trained.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.ema = [p.detach().clone() for p in self.parameters]
        self.update = 0
        self._forget()
        if found is not None:
            self._restore(found)
        # accelerate's wrapper looks for a package on the disk twice a step; only fp16 needs it.
        self.stepper: Any = self.optimizer
        if self.accelerator.scaler is not None:
            self.stepper = self.accelerator.prepare(self.optimizer)
        self.weighting = WEIGHTINGS[config.weighting]

    def _check_trainable(self, student: nn.Module) -> None:
        if not self.names:
            raise RangeError(
                f"{type(student).__name__}: every parameter is frozen; nothing can be trained. "
                "Call requires_grad_(True) on those to be trained."
            )
        if not self.frozen:
            return
        if self.config.shard:
            raise RangeError(
                "shard: this student's weights are frozen but for a few, and its teacher may hold "
                "the same ones; sharing them out would copy them. Leave the setting out."
            )
        sizes = [p.numel() for p in student.parameters() if p.requires_grad]
        self.run_key["trained"] = f"{len(sizes)} tensors of {sum(sizes)} numbers"

    def _prepare(self) -> tuple[nn.Module, nn.Module]:
        """Return the module whose parameters are trained, and the same as it is called."""
        config = self.config
        if config.checkpoint_activations:
            checkpoint = getattr(self.student, "checkpoint_activations", None)
            if checkpoint is None:
                raise RangeError(
                    f"checkpoint_activations: {type(self.student).__name__} has no method of that "
                    "name; give it one, or leave the setting out."
                )
            checkpoint()
        if config.shard:
            trained = _sharded(self.student, self.accelerator)
        else:
            trained = self.student.to(self.device)
        called = trained
        if config.compile:
            called = cast(nn.Module, torch.compile(trained))
        # A sharded module speaks to the other processes by itself.
        return trained, called if config.shard else self.accelerator.prepare(called)

    def run(self, label: str | None, stopping: Callable[[], bool]) -> None:
        config, main = self.config, self.accelerator.is_main_process
        if self.update == config.updates:
            return
        log = Log(self.folder, self.update) if main else None
        shown = main and label is not None
        progress = Progress(label or "", self.update, config.updates) if shown else None
        try:
            while self.update < config.updates:
                self._step()
                if progress is not None:
                    progress.step()
                last = self.update == config.updates
                late = is_time_up()
                stop = self._agree(late or stopping(), last)
                # A stop writes no row of its own, so the log does not depend on it; a loss that is
                # not finite is reported at once, as nothing would be saved.
                if last or self.update % config.log_every == 0 or (stop and not self._is_finite()):
                    self._read(log, progress)
                if last or stop or self.update % config.checkpoint_every == 0:
                    self._save()
                if stop and not last:
                    kind, why = (TimeUp, "time is up") if late else (Interrupted, "stopped")
                    raise kind(
                        f"{why} at update {self.update} of {config.updates}, which is saved; run "
                        "the same command to continue."
                    )
        finally:
            if progress is not None:
                progress.close()
            if log is not None:
                log.close()

    def _agree(self, stop: bool, last: bool) -> bool:
        """Whether any process was asked to stop; several ask each other when they read the loss."""
        if self.accelerator.num_processes == 1:
            return stop
        if not last and self.update % self.config.log_every:
            return False
        return bool(summed(torch.tensor(float(stop), device=self.device)) > 0)

    def _step(self) -> None:
        update, config = self.update, self.config
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(update, config)
        first = self.accelerator.process_index * config.accumulate
        for part in range(first, first + config.accumulate):
            # DDP sums what the last part leaves; the parts before need not wait for the others.
            last = part == first + config.accumulate - 1
            with self._unsynced(last):
                part_loss = self._part_loss(update, part) / config.accumulate
                self.accelerator.backward(part_loss)
            self.loss_sum += part_loss.detach()
        norm = self.accelerator.clip_grad_norm_(self.parameters, config.grad_clip)
        self.norm_sum += whole(torch.as_tensor(norm)).detach()
        self.stepper.step()
        self.stepper.zero_grad()
        mine, latest = [piece(e) for e in self.ema], [piece(p) for p in self.parameters]
        torch._foreach_lerp_(mine, latest, 1.0 - ema_at(update, config))
        self.update += 1
        self.count += 1

    @contextmanager
    def _unsynced(self, last: bool) -> Iterator[None]:
        if last:
            yield
        elif self.config.shard:
            self.trained.set_requires_gradient_sync(False)  # type: ignore[operator]
            yield
            self.trained.set_requires_gradient_sync(True)  # type: ignore[operator]
        else:
            with self.accelerator.no_sync(self.model):
                yield

    def _part_loss(self, update: int, part: int) -> Tensor:
        x, cond = self.batch(update, part, self.parts)
        x, cond = cast(Tensor, conds.send(x, self.device)), conds.send(cond, self.device)
        _seed_dropout(derive(self.seed, "dropout", update, part), self.device)
        draws = generator(self.device, self.seed, "update", update, part)
        with self.accelerator.autocast():
            r = self.problem(x, cond, draws)
        with self.accelerator.autocast() if self.config.shard else nullcontext():
            v = self.model(r.z, r.phi, r.cond, r.w)
        return loss(v, r.v_target, r.phi, self.weighting)

    def _forget(self) -> None:
        self.loss_sum = torch.zeros((), device=self.device)
        self.norm_sum = torch.zeros((), device=self.device)
        self.count, self.untimed, self.since = 0, 0, time.perf_counter()

    def _read(self, log: Log | None, progress: Progress | None) -> None:
        """Read the sums from the device: the only place where the loop waits for it."""
        # A number that is not finite in one process makes the sum non-finite: all stop together.
        total = summed(self.loss_sum) / self.accelerator.num_processes
        norms = summed(self.norm_sum) / self.accelerator.num_processes
        mean_loss, norm = float(total) / self.count, float(norms) / self.count
        rate = (self.count - self.untimed) / (time.perf_counter() - self.since)
        first = self.update - self.count + 1
        finite = torch.isfinite(total) & torch.isfinite(norms)
        # The gradient scaler of fp16 handles an overflow: it skips the update.
        if self.config.precision == "fp16":
            finite = torch.isfinite(total)
        if not bool(finite):
            raise NonFiniteError(
                f"the loss or its gradient became non-finite between updates {first} and "
                f"{self.update} (loss {mean_loss}, lr {lr_at(self.update - 1, self.config):.3g}). "
                f"The last good checkpoint is in {self.folder / 'checkpoints'}. Use a lower lr or "
                "grad_clip in another folder."
            )
        lr = lr_at(self.update - 1, self.config)
        if log is not None:
            log.write(self.update, loss=mean_loss, lr=lr, grad_norm=norm, updates_per_second=rate)
        if progress is not None:
            progress.loss(mean_loss)
        self._forget()

    def _is_finite(self) -> bool:
        """Whether all losses and gradients since the last reading are finite."""
        return not self.count or bool(torch.isfinite(summed(self.loss_sum + self.norm_sum)))

    def _readings(self) -> dict[str, Any]:
        """Return the sums since the last reading, (processes, 2), and the number of updates."""
        sums = torch.zeros(self.accelerator.num_processes, 2, device=self.device)
        sums[self.accelerator.process_index] = torch.stack([self.loss_sum, self.norm_sum])
        return {"sums": summed(sums).cpu(), "count": self.count}

    def _save(self) -> None:
        if not self._is_finite():
            return  # the next reading raises; this state must not replace a good one
        weights, ema = self._unfrozen(self._weights()), self._unfrozen(self.ema_state())
        adamw = self.optimizer.state_dict()
        moments = {i: {k: whole(v) for k, v in s.items()} for i, s in adamw["state"].items()}
        # Without the sums, the row of the log after a resume would average fewer updates.
        optimizer = {"adamw": {**adamw, "state": moments}, "readings": self._readings()}
        if self.accelerator.scaler is not None:
            optimizer["scaler"] = self.accelerator.scaler.state_dict()
        if self.accelerator.is_main_process:
            checkpoint = Checkpoint(self.update, weights, ema, optimizer)
            save_checkpoint(self.folder / "checkpoints", checkpoint, self.run_key, self.config.keep)
        self.accelerator.wait_for_everyone()

    def _restore(self, found: Checkpoint) -> None:
        self.update = found.update
        cut = [shared_like(found.ema[n].to(self.device), p) for n, p in self._named()]
        self.ema = [e.clone() for e in cut]
        adamw = found.optimizer["adamw"]
        check_moments(adamw["state"], self.parameters, self.folder)
        moments = {
            i: {k: shared_like(v.to(self.device), self.parameters[i]) for k, v in s.items()}
            for i, s in adamw["state"].items()
        }
        self.optimizer.load_state_dict({**adamw, "state": moments})
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(found.optimizer["scaler"])

        readings = found.optimizer.get("readings")  # older checkpoints have none
        if readings is not None and len(readings["sums"]) == self.accelerator.num_processes:
            sums = readings["sums"][self.accelerator.process_index].to(self.device)
            self.loss_sum, self.norm_sum = sums[0].clone(), sums[1].clone()
            self.count = self.untimed = int(readings["count"])

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        return zip(self.names, self.parameters, strict=True)

    def _weights(self) -> dict[str, Tensor]:
        return {k: whole(v.detach()) for k, v in self.trained.state_dict().items()}

    def _unfrozen(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: v for k, v in state.items() if k not in self.frozen}

    def ema_state(self) -> dict[str, Tensor]:
        """Return the state dict of the student with its averaged weights in place, whole.

        Frozen weights are the student's own memory, not copies.
        """
        averaged = dict(zip(self.names, self.ema, strict=True))
        state = self.trained.state_dict()
        return {
            k: v.detach() if k in self.frozen else whole(averaged.get(k, v).detach()).clone()
            for k, v in state.items()
        }

    def result(self) -> TrainResult:
        if self.config.shard:
            self.student.load_state_dict(self._weights())
        losses = [(int(r["update"]), float(r["loss"])) for r in read_metrics(self.folder)]
        return TrainResult(self.student.eval(), self.ema_state(), self.update, losses)


def check_trainable(config: TrainConfig, device: str | None) -> None:
    """Raise RangeError for settings that this device or number of processes cannot have."""
    state = processes(device)
    parts = state.num_processes * config.accumulate
    if config.batch_size % parts:
        raise RangeError(
            f"batch_size = {config.batch_size} cannot be shared by {parts} parts "
            f"({state.num_processes} processes, accumulate = {config.accumulate}); use a multiple "
            f"of {parts}."
        )
    if state.device.type == "cpu" and config.precision != "fp32":
        raise RangeError(
            f"precision must be fp32 here: {config.precision} on a CPU is 13 to 21 times slower. "
            "Set precision to fp32, or use a GPU."
        )
    if config.shard and config.precision == "fp16":
        raise RangeError("shard with precision fp16 is not supported; use bf16.")
    if config.shard and state.num_processes == 1:
        raise RangeError(
            "shard: there is one process, and nothing to share. Start several, with torchrun "
            "--nproc_per_node, or leave the setting out."
        )


def _accelerator(config: TrainConfig, device: str | None) -> Accelerator:
    check_trainable(config, device)
    on_cpu = processes(device).device.type == "cpu"
    # A singleton of accelerate's; a second run in one process may want another precision.
    AcceleratorState._reset_state()
    mixed = "no" if config.precision == "fp32" else config.precision
    return Accelerator(cpu=on_cpu, mixed_precision=mixed)


def _seed_dropout(seed: int, device: torch.device) -> None:
    if device.type == "cpu":
        # torch.manual_seed records a stack trace for every kind of device that is missing.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def _sharded(student: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Return a copy of the student that is sharded among the processes; the whole stays here.

    Members of its module lists (a U-Net's blocks) are gathered one at a time.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kind = accelerator.device.type
    mesh = init_device_mesh(kind, (accelerator.num_processes,))
    copied = copy.deepcopy(student).to(accelerator.device)
    # The innermost first: a module leaves out what is sharded inside it already.
    for module in reversed(list(copied.modules())):
        if isinstance(module, nn.ModuleList):
            for member in module:
                if not isinstance(member, nn.ModuleList) and any(True for _ in member.parameters()):
                    fully_shard(member, mesh=mesh)
    fully_shard(copied, mesh=mesh)
    return copied


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a flag that the loop reads between updates."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, _frame: object) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
