"""One loop for the teacher, stage one and stage two.

Exact resume works by counting: batch, noise, learning rate and averaging are functions of (seed,
update), so a run that is killed at any moment and started again ends with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs, DistributedDataParallelKwargs
from torch import Tensor, nn

from fewstep.core.seed import derive
from fewstep.distill.problem import WEIGHTINGS, AsksAverage, Problem, loss
from fewstep.errors import Interrupted, MissingError, NonFiniteError, RangeError, TimeUp
from fewstep.limit import is_time_up, stop_requests
from fewstep.train.checkpoint import load_checkpoint, save_checkpoint, save_sharded
from fewstep.train.config import TrainConfig
from fewstep.train.log import Log, read_metrics
from fewstep.train.optimizer import check_optimizer
from fewstep.train.processes import processes, summed, translate_peer_failures
from fewstep.train.progress import Progress
from fewstep.train.readings import Readings
from fewstep.train.schedule import ema_at, lr_at
from fewstep.train.shard import sharded_teacher
from fewstep.train.targets import Batch as Batch
from fewstep.train.targets import Targets, seed_dropout
from fewstep.train.track import Track, Tracking, check_trackers
from fewstep.train.trained import Trained, check_average, what_is_trained


class TrainResult(NamedTuple):
    """A finished run: the module, its averaged weights (EMA) on the CPU, and the losses read."""

    student: nn.Module
    ema_state: dict[str, Tensor]
    update: int
    losses: list[tuple[int, float]]


def train(  # noqa: PLR0913
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
    track: Track | None = None,
) -> TrainResult:
    """Train a denoiser on a problem; the same call resumes where an earlier one stopped.

    Args:
        student: an nn.Module that is a denoiser; trained in place. Its frozen parameters (no
            `requires_grad`) are not optimised, averaged or saved in checkpoints. If other
            parameters have no effect on the output, training on several processes needs its
            attribute `has_unused_weights` to be true. Its attribute `lr_scales`, if any, holds
            positive factors of the learning rate by names of its modules.
        problem: `Pretrain`, `GuidanceDistillation`, `StepDistillation`, or your own. One
            with a method `lend` is given the student's average (`AsksAverage`). With `shard` its
            teacher is shared out as well, where it is a module in the field `teacher` of a
            dataclass; the one that was given is left in the memory of the CPU, like the student.
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
        track: trackers to send losses, settings and samples to; the result does not depend on it.

    Raises:
        NonFiniteError: the loss or the gradient is not finite; the last good checkpoint stays.
        CheckpointError: no checkpoint of the folder can be read, or they are of another run.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written first.
        TimeUp: the `time_limit` around this call has passed; a checkpoint was written first.
        RangeError: a precision that the device does not have; a batch size that the parts do not
            divide; a setting that this student or number of processes cannot have; a student
            with nothing to train; an unknown tracker.
        MissingError: the package of a tracker, or of the optimiser, is not installed.
        ProcessLostError: another process of the run ended.
    """
    # Dropout draws from the global generator; the caller's own draws are left alone.
    with translate_peer_failures(), torch.random.fork_rng(), stop_requests() as stopping:
        run_key = {**config.identity(), "seed": seed, "fingerprint": fingerprint}
        if track is not None:
            check_tracking(track.trackers, track.images is not None, config)
        loop = _Loop(student, problem, batch, config, Path(folder), run_key, device, track)
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
        track: Track | None = None,
    ) -> None:
        self.config, self.folder, self.seed = config, folder, run_key["seed"]
        check_average(problem, config)
        self.accelerator = accelerator = _accelerator(student, config, device)
        self.device = accelerator.device
        self.parts = accelerator.num_processes * config.accumulate
        self.run_key = {**run_key, "parts": self.parts}
        part = what_is_trained(student, config)
        if part is not None:
            self.run_key["trained"] = part
        found = load_checkpoint(self.folder / "checkpoints", self.run_key, torch.device("cpu"))
        if found is not None:
            found = found.with_names(student.state_dict())
        self.trained = Trained(student, config, accelerator, found, self.folder)
        if isinstance(problem, AsksAverage):
            problem.lend(self.trained.averaged)
        if config.shard:
            problem = sharded_teacher(problem, accelerator)
        same: Any = {"seed": self.seed, "parts": self.parts, "pool": config.pool}
        self.targets = Targets(problem, batch, accelerator, **same)
        self.update = 0 if found is None else found.update
        self.readings = Readings(self.device, accelerator.num_processes, accelerator.process_index)
        # Older checkpoints have no readings.
        if found is not None and found.optimizer.get("readings") is not None:
            self.readings.restore(found.optimizer["readings"])
        self.weighting = WEIGHTINGS[config.weighting]
        self.track = track

    def run(self, label: str | None, stopping: Callable[[], bool]) -> None:
        config, main = self.config, self.accelerator.is_main_process
        if self.update == config.updates:
            return
        with ExitStack() as stack:  # closed in the reverse order, and none is left open
            tracking = Tracking(self.track, self.accelerator, self.folder, self.run_key)
            stack.callback(tracking.close)
            log = stack.enter_context(closing(Log(self.folder, self.update))) if main else None
            progress = None
            if main and label is not None:
                progress = Progress(label, self.update, config.updates)
                stack.callback(progress.close)
            if self.update == 0:
                self._draw(tracking)
            while self.update < config.updates:
                self._step()
                if progress is not None:
                    progress.step()
                last = self.update == config.updates
                asked, late = self._agree(stopping(), is_time_up(), last)
                stop = asked or late
                # A stop writes no row of its own, so the log does not depend on it; a loss that is
                # not finite is reported at once, as nothing would be saved.
                if (
                    last
                    or self.update % config.log_every == 0
                    or (stop and not self.readings.are_finite())
                ):
                    self._read(log, progress, tracking)
                if last or stop or self.update % config.checkpoint_every == 0:
                    self._save()
                self._draw(tracking)
                if stop and not last:
                    kind, why = (Interrupted, "stopped") if asked else (TimeUp, "time is up")
                    raise kind(
                        f"{why} at update {self.update} of {config.updates}, which is saved; run "
                        "the same command to continue."
                    )

    def _agree(self, asked: bool, late: bool, last: bool) -> tuple[bool, bool]:
        """Whether any process was asked to stop, and whether the time of any is up.

        Several processes ask each other when they read the loss.
        """
        if self.accelerator.num_processes == 1:
            return asked, late
        if not last and self.update % self.config.log_every:
            return False, False
        flags = summed(torch.tensor([float(asked), float(late)], device=self.device)).tolist()
        return flags[0] > 0, flags[1] > 0

    def _step(self) -> None:
        update, config = self.update, self.config
        first = self.accelerator.process_index * config.accumulate
        for part in range(first, first + config.accumulate):
            # DDP sums what the last part leaves; the parts before need not wait for the others.
            last = part == first + config.accumulate - 1
            with self._unsynced(last):
                part_loss = self._part_loss(update, part) / config.accumulate
                self.accelerator.backward(part_loss)
            self.readings.loss_sum += part_loss.detach()
        self.readings.norm_sum += self.trained.step(lr_at(update, config), ema_at(update, config))
        self.update += 1
        self.readings.count += 1

    @contextmanager
    def _unsynced(self, last: bool) -> Iterator[None]:
        if last:
            yield
        elif self.config.shard:
            self.trained.module.set_requires_gradient_sync(False)  # type: ignore[operator]
            yield
            self.trained.module.set_requires_gradient_sync(True)  # type: ignore[operator]
        else:
            with self.accelerator.no_sync(self.trained.model):
                yield

    def _part_loss(self, update: int, part: int) -> Tensor:
        r = self.targets(update, part)
        # Making targets may have drawn from the global generator, and only some updates make them.
        seed_dropout(derive(self.seed, "dropout", update, part), self.device)
        with self.accelerator.autocast() if self.config.shard else nullcontext():
            v = self.trained.model(*r.asked)
        return loss(v, r.v_target, r.phi, self.weighting)

    def _draw(self, tracking: Tracking) -> None:
        if tracking.wants_images(self.update, self.config.updates):
            with self.trained.averaged(), self.accelerator.autocast():
                tracking.images(self.update)

    def _read(self, log: Log | None, progress: Progress | None, tracking: Tracking) -> None:
        """Read the sums from the device: the only place where the loop waits for it."""
        seen, lr = self.readings.read(self.update), lr_at(self.update - 1, self.config)
        # The gradient scaler of fp16 handles an overflow: it skips the update.
        finite = seen.finite[0] if self.config.precision == "fp16" else all(seen.finite)
        if not finite:
            raise NonFiniteError(
                f"the loss or its gradient became non-finite between updates {seen.first} and "
                f"{self.update} (loss {seen.loss}, lr {lr:.3g}). "
                f"The last good checkpoint is in {self.folder / 'checkpoints'}. Use a lower lr or "
                "grad_clip in another folder."
            )
        row = {"loss": seen.loss, "lr": lr, "grad_norm": seen.norm}
        row["updates_per_second"] = seen.rate
        if log is not None:
            log.write(self.update, **row)
        tracking.log(self.update, row)
        if progress is not None:
            progress.loss(seen.loss)
        self.readings.forget()

    def _save(self) -> None:
        if not self.readings.are_finite():
            return  # the next reading raises; this state must not replace a good one
        checkpoint = self.trained.checkpoint(self.update, self.readings.state())
        first, to = self.accelerator.is_main_process, self.folder / "checkpoints"
        if self.config.shard:
            save_sharded(to, checkpoint, self.run_key, self.config.keep, first=first)
        elif first:
            save_checkpoint(to, checkpoint, self.run_key, self.config.keep)
        self.accelerator.wait_for_everyone()

    def result(self) -> TrainResult:
        student = self.trained.student
        if self.config.shard:
            student.load_state_dict(self.trained.weights())
        losses = [(int(r["update"]), float(r["loss"])) for r in read_metrics(self.folder)]
        return TrainResult(student.eval(), self.trained.ema_state(), self.update, losses)


def check_tracking(trackers: Sequence[str], images: bool, config: TrainConfig) -> None:
    """Raise RangeError or MissingError for trackers that this training cannot have.

    images: whether samples are sent too.
    """
    check_trackers(trackers)
    if images and config.shard:
        raise RangeError(
            "samples for trackers need the whole student on one device, and shard divides it. "
            "Leave track.images_every or shard out."
        )


def check_trainable(config: TrainConfig, device: str | None) -> None:
    """Raise RangeError for settings that this device or number of processes cannot have.

    Raises MissingError where the optimiser needs a package that is not installed.
    """
    check_optimizer(config)
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
    if config.shard and not hasattr(dcp, "HuggingFaceStorageWriter"):
        raise MissingError(
            f"shard needs a torch whose distributed checkpoints can be safetensors, got "
            f"{torch.__version__}. Install a newer torch, or leave the setting out."
        )
    if config.shard and state.num_processes == 1:
        raise RangeError(
            "shard: there is one process, and nothing to share. Start several, with torchrun "
            "--nproc_per_node, or leave the setting out."
        )


def _accelerator(student: nn.Module, config: TrainConfig, device: str | None) -> Accelerator:
    check_trainable(config, device)
    on_cpu = processes(device).device.type == "cpu"
    # A singleton of accelerate's; a second run in one process may want another precision.
    AcceleratorState._reset_state()
    mixed = "no" if config.precision == "fp32" else config.precision
    ddp = DistributedDataParallelKwargs(
        gradient_as_bucket_view=True,  # else every gradient is there twice
        find_unused_parameters=getattr(student, "has_unused_weights", False),
    )
    # Its cache would hold a copy of every weight that was gathered.
    autocast = AutocastKwargs(cache_enabled=not config.shard)
    return Accelerator(cpu=on_cpu, mixed_precision=mixed, kwargs_handlers=[ddp, autocast])
