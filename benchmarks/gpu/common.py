"""What the steps share: where to work, how a result is recorded, timing, and the network measured.

A step is a list of parts. Each part's result, or its error, is in the step's JSON file as soon as
the part ends, so that a run that is cut short leaves what it has measured.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import fewstep
from fewstep.atomic import atomic_write
from fewstep.distill.pretrain import Pretrain
from fewstep.distill.problem import loss
from fewstep.models import Card, Model, build_unet
from fewstep.models.clocks.native import CLOCK
from fewstep.models.families.unet_class import UNET_CLASS
from fewstep.recipes.config import Recipe, load_recipe
from fewstep.train import TrainConfig, train

Row = dict[str, Any]
Work = Callable[[], object]
RECIPE = "cifar10-h100"
CLASSES = 10
VERSIONS = ("torch", "diffusers", "transformers", "accelerate", "numpy", "triton")
# A small network and short runs, to try the scripts on a CPU.
TINY = (
    "network.channels=[8, 16]",
    "network.attention=[false, false]",
    "network.layers=1",
    "network.groups=4",
    "network.w_dim=32",
    "teacher.precision=fp32",
    "teacher.batch_size=8",
    "teacher.warmup=2",
    "teacher.log_every=1",
    "distill.precision=fp32",
    "distill.batch_size=8",
    "distill.warmup=2",
    "distill.log_every=1",
    "evaluate.samples=20",
    "evaluate.batch_size=20",
    "evaluate.reference_steps=6",
)


@dataclass
class Context:
    """Where a step works, and until when.

    Attributes:
        device: "cuda" or "cpu".
        tiny: a small network and few repetitions, to try the script.
        work: folder for everything that need not come back.
        out: folder of what comes back.
        data: file that `pack_data.py` wrote.
        features: folder of a classifier for the metrics; None trains one.
        start: --out of an earlier leg to go on from.
        deadline: time, as `time.monotonic()` gives it, when the step must have ended.
    """

    device: str
    tiny: bool
    work: Path
    out: Path
    data: Path | None = None
    features: Path | None = None
    start: Path | None = None
    deadline: float = float("inf")

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """Of training."""
        return "bf16" if self.device == "cuda" else "fp32"

    def left(self) -> float:
        """Return the seconds until the deadline."""
        return self.deadline - time.monotonic()

    def now(self) -> float:
        """Return the time in seconds, once the device has finished its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def autocast(self) -> AbstractContextManager[object]:
        """Compute in bf16 on a GPU."""
        if self.device != "cuda":
            return nullcontext()
        return torch.autocast("cuda", torch.bfloat16)

    def recipe(self) -> Recipe:
        """Return the recipe, in its small form for a trial."""
        return load_recipe(RECIPE, TINY if self.tiny else ())

    def short(self, number: int, tiny: int) -> int:
        """Return the number, or the small one for a trial."""
        return tiny if self.tiny else number

    def free(self) -> None:
        """Give back the memory and the compiled code that the last part leaves."""
        gc.collect()
        torch.compiler.reset()
        if self.device == "cuda":
            torch.cuda.empty_cache()


@dataclass
class Record:
    """The JSON file of one step, written anew after every part."""

    name: str
    context: Context
    results: Row = field(default_factory=dict)
    errors: Row = field(default_factory=dict)
    skipped: Row = field(default_factory=dict)
    seconds: Row = field(default_factory=dict)

    def part(self, name: str, work: Callable[[], Any], *, need: float = 0.0) -> Any:
        """Return what work returns, recorded; None where it fails, or where time is too short.

        need: seconds that it takes on a GPU; with less left it is skipped.
        """
        left = self.context.left()
        if left < need and not self.context.tiny:
            self.skipped[name] = f"{left:.0f} s left, about {need:.0f} s needed"
            print(f"[{self.name}] {name}: skipped, {self.skipped[name]}", flush=True)
            self.write()
            return None
        begun = time.monotonic()
        try:
            found = self.results[name] = work()
        except Exception as error:
            found = None
            self.errors[name] = f"{type(error).__name__}: {error}"[:2000]
            trace = "".join(traceback.format_exc().splitlines(keepends=True)[-12:])
            print(f"[{self.name}] {name}: FAILED\n{trace}", flush=True)
            if "CUDA error" in str(error):
                self.write()
                raise  # this process can use the device no more
        self.seconds[name] = round(time.monotonic() - begun, 2)
        shown = "" if found is None else json.dumps(found, default=str)[:300]
        print(f"[{self.name}] {name}: {self.seconds[name]} s {shown}", flush=True)
        self.write()
        return found

    def write(self) -> None:
        """Write the file, whole."""
        told = {
            "step": self.name,
            "environment": environment(self.context),
            "results": self.results,
            "errors": self.errors,
            "skipped": self.skipped,
            "seconds": self.seconds,
        }
        text = json.dumps(told, indent=1, default=str) + "\n"
        atomic_write(self.context.work / f"{self.name}.json", text.encode())


def environment(context: Context) -> Row:
    """Return what the figures depend on beside the code."""
    cuda = context.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.machine() + " CPU",
        "precision": context.precision,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "tiny": context.tiny,
        "commit": os.environ.get("FEWSTEP_COMMIT", "unknown"),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "fewstep": fewstep.__version__,
        **{name: _version(name) for name in VERSIONS},
        "python": platform.python_version(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def teacher_of(context: Context) -> Model:
    """Return a fresh teacher of the recipe, on the device, in evaluation mode."""
    recipe, size = context.recipe(), 32
    shape = (3, size, size)
    card = Card(
        fewstep=fewstep.__version__, family=UNET_CLASS.name, name="teacher",
        clock=CLOCK, shape=shape, num_classes=CLASSES, null_class=CLASSES,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        unet = build_unet(recipe.network, shape, CLASSES)
    return Model(unet, card).eval().to(context.device)


def parameters(model: torch.nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())


def examples(context: Context, size: int) -> tuple[Tensor, Tensor]:
    """Return generated images (size, 3, 32, 32) and classes, on the device."""
    x = 2 * torch.rand(size, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 1
    return x.to(context.device), (torch.arange(size) % CLASSES).to(context.device)


def counted(work: Work) -> int:
    """Return the FLOPs of matrix products and convolutions, 2 per multiplication and addition."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def update_flops(context: Context, student: Model, problem: Any) -> float:
    """Return the FLOPs of one update per example, forward and backward, the teacher's included."""
    x, cond = examples(context, 2)

    def update() -> None:
        r = problem(x, cond, torch.Generator(x.device).manual_seed(0))
        loss(model(r.z, r.phi, r.cond, r.w), r.v_target, r.phi).backward()

    model = copy.deepcopy(student).train()
    return counted(update) / 2


def median_ms(context: Context, work: Work, rounds: int, *, warm: int = 2, calls: int = 1) -> Row:
    """Return the median and the quartiles of the time of one call, in ms."""
    for _ in range(warm):
        work()
    taken = []
    for _ in range(max(2, rounds)):
        begun = context.now()
        for _ in range(calls):
            work()
        taken.append(1e3 * (context.now() - begun) / calls)
    low, middle, high = statistics.quantiles(taken, n=4, method="inclusive")
    return {"ms": middle, "from": low, "to": high, "rounds": len(taken)}


def timed_training(
    context: Context,
    student: Model,
    problem: Any,
    *,
    size: int,
    updates: int,
    warm: int = 5,
    batches: Callable[[int], tuple[Tensor, Tensor]] | None = None,
    **settings: Any,
) -> Row:
    """Return the time of an update of `fewstep.train`, and of the first, which may compile.

    The device is waited for before and after the timed updates, not between them.
    """
    x, cond = examples(context, size)
    marks: dict[int, float] = {}

    def batch(update: int, part: int, parts: int) -> tuple[Tensor, Tensor]:
        del part, parts
        if update in (0, 1, warm, warm + updates):
            marks[update] = context.now()
        return (x, cond) if batches is None else batches(update)

    config = TrainConfig(
        updates=warm + updates + 1, batch_size=size, precision=context.precision, warmup=0,
        decay="none", lr=1e-4, checkpoint_every=10**6, log_every=10**6, **settings,
    )  # fmt: skip
    folder = fresh_folder(context.work / "timed")
    train(student, problem, batch, config, folder, device=context.device, progress=False)
    taken = (marks[warm + updates] - marks[warm]) / updates
    return {
        "batch": size,
        "ms": 1e3 * taken,
        "images_per_second": size / taken,
        "first_update_seconds": marks[1] - marks[0],
        "updates": updates,
    }


def fresh_folder(path: Path) -> Path:
    """Return the folder, emptied."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)
    return path


def pretraining(model: Model) -> Pretrain:
    """Return the teacher's own training problem."""
    return Pretrain(model.null_cond, dropout=0.1, phi=model.traits.phi_range)


def fastest(rows: Sequence[Row]) -> Row | None:
    """Return the row with the most images per second."""
    return max(rows, key=lambda r: float(r["images_per_second"]), default=None)
