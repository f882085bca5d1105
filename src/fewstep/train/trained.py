"""A student while it is trained: its optimiser, its average, and what checkpoints hold of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.distill.problem import AsksAverage, Problem
from fewstep.errors import CheckpointError, RangeError
from fewstep.train.checkpoint import Checkpoint
from fewstep.train.config import TrainConfig
from fewstep.train.optimizer import check_groups, check_state, lr_scales, make_optimizer
from fewstep.train.processes import piece, shared_like, whole
from fewstep.train.shard import sharded


def what_is_trained(student: nn.Module, config: TrainConfig) -> str | None:
    """Return what of a student is trained, where a part is frozen; None where it is not.

    Raises RangeError for a student that is frozen whole, or in part and to be shared out.
    """
    trained = [p.numel() for p in student.parameters() if p.requires_grad]
    if not trained:
        raise RangeError(
            f"{type(student).__name__}: every parameter is frozen; nothing can be trained. "
            "Call requires_grad_(True) on those to be trained."
        )
    if all(p.requires_grad for p in student.parameters()):
        return None
    if config.shard:
        raise RangeError(
            "shard: this student's weights are frozen but for a few, and its teacher may hold "
            "the same ones; sharing them out would copy them. Leave the setting out."
        )
    return f"{len(trained)} tensors of {sum(trained)} numbers"


def check_average(problem: Problem, config: TrainConfig) -> None:
    """Raise RangeError for `shard` or `pool` where a problem needs the student of every update."""
    asks = isinstance(problem, AsksAverage) or hasattr(problem, "networks")
    if config.shard and asks:
        raise RangeError(
            f"shard must be left out for {type(problem).__name__}, which needs the whole student, "
            "or its average, on every device. Train without it."
        )
    if config.pool > 1 and asks:
        raise RangeError(
            f"pool must be 1 for {type(problem).__name__}, whose targets come from the student of "
            f"every update, got {config.pool}. Leave it out."
        )


class Trained:
    """A student, the optimiser of its parameters, and their average (EMA).

    Attributes:
        student: whole, as it was given.
        module: the one whose parameters are trained; with `shard`, a copy that is shared out.
        model: the same as it is called.
    """

    def __init__(
        self,
        student: nn.Module,
        config: TrainConfig,
        accelerator: Accelerator,
        found: Checkpoint | None,
        folder: Path,
    ) -> None:
        """Move the student to the device and take up a checkpoint, where one was found.

        folder: of the checkpoints. Raises CheckpointError where one does not fit the student, and
        RangeError for `lr_scales` of the student that do not fit it.
        """
        self.student, self.config, self.accelerator = student.train(), config, accelerator
        self._names = [name for name, p in student.named_parameters() if p.requires_grad]
        # By every name: two networks may share one frozen tensor.
        every = student.named_parameters(remove_duplicate=False)
        self._frozen = {name for name, p in every if not p.requires_grad}
        if found is not None:
            # Frozen weights are not in checkpoints; the run's key counts the others.
            try:
                student.load_state_dict(found.weights, strict=not self._frozen)
            except RuntimeError as error:
                raise CheckpointError(
                    f"{folder}: the checkpoint must hold the weights of this network, and it does "
                    f"not: {str(error).splitlines()[-1].strip()} Remove the folder to train from "
                    "the start."
                ) from None
        scales = lr_scales(student, self._names)
        self.module, self.model = self._prepare()
        self.parameters: list[Tensor] = [p for p in self.module.parameters() if p.requires_grad]
        self._optimizer = make_optimizer(self.parameters, config, accelerator.device, scales)
        self._ema = [p.detach().clone() for p in self.parameters]
        if found is not None:
            self._restore(found, folder)
        # accelerate's wrapper looks for a package on the disk twice a step; only fp16 needs it.
        self._stepper: Any = self._optimizer
        if accelerator.scaler is not None:
            self._stepper = accelerator.prepare(self._optimizer)

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
            trained = sharded(self.student, self.accelerator)
        else:
            trained = self.student.to(self.accelerator.device)
        called = trained
        if config.compile:
            called = cast(nn.Module, torch.compile(trained))
        # A sharded module speaks to the other processes by itself.
        return trained, called if config.shard else self.accelerator.prepare(called)

    def step(self, lr: float, decay: float) -> Tensor:
        """Take a step from the gradients, and average; return their norm before it was clipped."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group.get("scale", 1.0)
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.config.grad_clip)
        self._stepper.step()
        self._stepper.zero_grad()
        mine, latest = [piece(e) for e in self._ema], [piece(p) for p in self.parameters]
        torch._foreach_lerp_(mine, latest, 1.0 - decay)
        return whole(torch.as_tensor(norm)).detach()

    def checkpoint(self, update: int, readings: dict[str, Any]) -> Checkpoint:
        """Return what a checkpoint holds; with `shard`, this process's part of each tensor."""
        averaged = zip(self._names, self._ema, strict=True)
        state = {k: v.detach() for k, v in self.module.state_dict().items()}
        weights = {k: v for k, v in state.items() if k not in self._frozen}
        ema = {**weights, **{k: v.detach() for k, v in averaged}}
        adamw = self._optimizer.state_dict()
        # Without the sums, the row of the log after a resume would average fewer updates.
        optimizer = {"adamw": adamw, "readings": readings}
        if self.accelerator.scaler is not None:
            optimizer["scaler"] = self.accelerator.scaler.state_dict()
        return Checkpoint(update, weights, ema, optimizer)

    @contextmanager
    def averaged(self) -> Iterator[Denoiser]:
        """Yield the student with the average in place of the trained weights, without dropout."""
        kept = [p.data for p in self.parameters]
        for parameter, average in zip(self.parameters, self._ema, strict=True):
            parameter.data = average
        self.student.eval()
        try:
            with torch.no_grad():
                yield cast(Denoiser, self.student)
        finally:
            for parameter, data in zip(self.parameters, kept, strict=True):
                parameter.data = data
            self.student.train()

    def _restore(self, found: Checkpoint, folder: Path) -> None:
        named = zip(self._names, self.parameters, strict=True)
        cut = [shared_like(found.ema[name], p) for name, p in named]
        self._ema = [e.to(self.accelerator.device, copy=True) for e in cut]
        if not found.optimizer:
            return
        adamw = found.optimizer["adamw"]
        check_groups(adamw["param_groups"], self._optimizer.param_groups, folder)
        check_state(adamw["state"], self.parameters, folder)
        moments = {
            i: {k: shared_like(v, self.parameters[i]) for k, v in s.items()}
            for i, s in adamw["state"].items()
        }
        self._optimizer.load_state_dict({**adamw, "state": moments})
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(found.optimizer["scaler"])

    def weights(self) -> dict[str, Tensor]:
        """Return the state dict of what is trained, whole, on the CPU."""
        return {k: whole(v.detach()).cpu() for k, v in self.module.state_dict().items()}

    def ema_state(self) -> dict[str, Tensor]:
        """Return the state dict of the student with its averaged weights in place, whole.

        Frozen weights are the student's own memory; the others are copies on the CPU.
        """
        averaged = dict(zip(self._names, self._ema, strict=True))

        def copied(value: Tensor) -> Tensor:
            return whole(value.detach()).to("cpu", copy=True)

        return {
            k: v.detach() if k in self._frozen else copied(averaged.get(k, v))
            for k, v in self.module.state_dict().items()
        }
