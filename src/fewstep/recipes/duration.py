"""How long a run will take on this machine, from a short measurement of its network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fewstep.core import cond as conds
from fewstep.data import Prompts
from fewstep.distill.plan import STAGE_ONE, TEACHER, Stage
from fewstep.errors import is_out_of_memory
from fewstep.models import Model
from fewstep.recipes.config import Recipe
from fewstep.recipes.preflight import found_models
from fewstep.recipes.run import Run
from fewstep.recipes.teachers import fresh_teacher, load_parent
from fewstep.train import processes

REPEATS = 3
AT_MOST = 1.0  # seconds that one measured call should take; larger batches are cut down to it


@dataclass(frozen=True)
class Speed:
    """Measured seconds per example, in all processes together.

    forward: of one evaluation of the network. training: of a forward and a backward pass.
    """

    forward: float
    training: float

    def distillation(self, stages: Iterable[Stage], batch_size: int) -> float:
        """Return the seconds of training some stages of a plan."""
        costs = [stage.cost(batch_size) for stage in stages]
        return sum(c.teacher * self.forward + c.student * self.training for c in costs)

    def pretraining(self, recipe: Recipe) -> float:
        """Return the seconds of the teacher's training."""
        return recipe.teacher.updates * recipe.teacher.batch_size * self.training


def speed_of(run: Run, teachers: Sequence[Path] = ()) -> Speed | None:
    """Measure the network that a run distils, in about a second for a small one.

    teachers: folders that are given for the run.

    Returns None where there is no network yet to measure (data that are missing, or latents that
    are not encoded yet), and where the memory is not enough for one example.
    """
    model = _network(run, teachers)
    if model is None:
        return None
    here, config = processes(run.device), run.recipe.train_config(None)
    lora = False
    if run.plan.stages:
        config = run.recipe.train_config(run.plan.stages[0])
        lora = run.recipe.distill.lora is not None
    size = max(1, config.batch_size // (config.accumulate * here.num_processes))
    # With these settings a plain backward pass takes more memory than the training does.
    saving = lora or config.shard or config.checkpoint_activations or config.precision != "fp32"
    with torch.random.fork_rng():
        speed = _measured(model, size, here.device, backward=not saving)
    del model
    if here.device.type == "cuda":
        torch.cuda.empty_cache()
    if speed is None:
        return None
    return Speed(speed.forward / here.num_processes, speed.training / here.num_processes)


def _measured(model: Model, size: int, device: torch.device, *, backward: bool) -> Speed | None:
    """Return the speed of one process at batches of at most `size`, or None without the memory.

    backward: whether to measure a backward pass; it counts as two forward passes otherwise.
    """

    def call(count: int) -> torch.Tensor:
        z = torch.zeros(count, *model.card.shape, device=device)
        phi, w = z.new_full((count,), 0.8), z.new_ones(count)
        cond = conds.to(conds.repeat_null(model.null_cond, count), device)
        v: torch.Tensor = model(z, phi, cond, w)
        return v

    def forward(count: int) -> None:
        with torch.no_grad():
            call(count)

    def both(count: int) -> None:
        call(count).square().mean().backward()

    speed: Speed | None = None
    try:
        model.to(device)
        count, ahead = 1, _seconds(forward, 1, device)
        speed = Speed(ahead, 3 * ahead)
        while count < size and ahead < AT_MOST / 4:
            count = min(size, 4 * count)
            ahead = _seconds(forward, count, device)
            speed = Speed(ahead / count, 3 * ahead / count)
        if backward and ahead <= AT_MOST:  # too slow ones are not tried
            model.requires_grad_(True)
            speed = Speed(ahead / count, _seconds(both, count, device) / count)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    return speed


def _seconds(call: Callable[[int], None], count: int, device: torch.device) -> float:
    """Return the shortest time of a few calls with a batch of `count`, the first of them cold."""
    times: list[float] = []
    while len(times) < 2 or (len(times) < REPEATS and sum(times) < AT_MOST):
        _wait(device)
        started = time.perf_counter()
        call(count)
        _wait(device)
        times.append(time.perf_counter() - started)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _network(run: Run, teachers: Sequence[Path]) -> Model | None:
    """Return the network that the run starts from, or None where it is not there to be made."""
    found = found_models(run.workspace, teachers)
    for name in (TEACHER, STAGE_ONE):
        if name in found:
            return load_parent(run.recipe, found[name][0])
    if run.recipe.latents is not None or not run.data.are_there:
        return None
    images = run.data.images
    assert not isinstance(images, Prompts)
    return fresh_teacher(run.data, images)
