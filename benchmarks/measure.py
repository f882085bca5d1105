"""What every benchmark shares: timing by turns, memory, counting, and how a result is written.

Two ways to do the same thing are timed alternately in one process, and the median of the ratios of
their times is reported with its quartiles, so that a noisy machine cancels out.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.train import TrainConfig, train
from fewstep.train.memory import Live

Work = Callable[[], object]
Row = dict[str, Any]
MIB = 2**20
CPU = torch.device("cpu")
VERSIONS = ("fewstep", "torch", "diffusers", "accelerate", "numpy")


@dataclass(frozen=True)
class Setting:
    """Where and how to measure.

    Attributes:
        device: of the networks.
        precision: "fp32", or "bf16" by autocast in training and in the weights in sampling.
        data: a parquet file of images; None: they are generated.
    """

    device: torch.device = CPU
    precision: str = "fp32"
    data: Path | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of a network that only samples."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def now(self) -> tuple[float, float]:
        """Return wall and processor seconds, once the device has done what it was asked."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter(), time.process_time()

    def autocast(self) -> AbstractContextManager[object]:
        """Compute in bf16 where that is asked for."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


@dataclass
class Times:
    """Wall and processor seconds of each side, in the order of the rounds."""

    wall: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)

    def add(self, side: str, begun: tuple[float, float], ended: tuple[float, float]) -> None:
        """Keep one turn of a side."""
        self.wall.setdefault(side, []).append(ended[0] - begun[0])
        self.cpu.setdefault(side, []).append(ended[1] - begun[1])

    def ratio(self, what: str, a: str, b: str, most: float | None = None) -> Row:
        """Return the row of a table: a's time over b's, round by round.

        most: the target, where there is one.
        """
        found = paired(self.wall[a], self.wall[b])
        row = {"what": what, **found, "processor": paired(self.cpu[a], self.cpu[b])["ratio"]}
        row |= {f"{s} ms": 1e3 * statistics.median(self.wall[n]) for s, n in (("A", a), ("B", b))}
        if most is not None:
            row |= {"target": f"<= {most:g}", "met": found["ratio"] <= most}
        return row


def paired(a: Sequence[float], b: Sequence[float]) -> Row:
    """Return the median of the ratios a/b, its quartiles and the number of rounds (at least 2)."""
    ratios = sorted(x / y for x, y in zip(a, b, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"ratio": middle, "low": low, "high": high, "rounds": len(ratios)}


def alternate(
    setting: Setting, sides: Mapping[str, Work], rounds: int, *, warm: int = 1, times: int = 1
) -> Times:
    """Time the sides by turns, the first to go changing every round.

    warm: rounds that are not counted. times: calls in one turn.
    """
    out = Times()
    for turn in range(warm + rounds):
        order = list(sides) if turn % 2 else list(sides)[::-1]
        for side in order:
            begun = setting.now()
            for _ in range(times):
                sides[side]()
            if turn >= warm:
                out.add(side, begun, setting.now())
    return out


Load = Callable[[int], tuple[Tensor, Any]]


def beside_training(
    setting: Setting,
    student: nn.Module,
    problem: Any,
    load: Load,
    config: TrainConfig,
    folder: Path,
    rivals: Mapping[str, Work],
    *,
    warm: int = 2,
) -> Times:
    """Time whole updates of `fewstep.train` ("fewstep") by turns with those of the rivals.

    An update is what lies between two questions for a batch: the step, the bar and the log. The
    rivals take their turns inside the question, where the clock of the loop stands still.
    """
    out, begun = Times(), (0.0, 0.0)

    def batch(update: int, part: int, parts: int) -> tuple[Tensor, Any]:
        del part, parts
        nonlocal begun
        if update > warm:
            out.add("fewstep", begun, setting.now())
        for name, work in rivals.items():
            start = setting.now()
            work()
            if update >= warm and update < config.updates - 1:
                out.add(name, start, setting.now())
        begun = setting.now()
        return load(update)

    device = setting.device.type
    train(student, problem, batch, config, folder, device=device, progress=False)
    return out


class Peak:
    """The most memory that was in use above what there was at `start`, in bytes.

    On a GPU the allocator's; on a CPU that of the tensors which torch was asked for, without the
    scratch memory of its kernels.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting, self._live, self._before = setting, Live(meta=False), 0
        self._counting = ExitStack()

    def start(self) -> None:
        """Begin to count."""
        if self._setting.device.type == "cuda":
            torch.cuda.synchronize(self._setting.device)
            torch.cuda.reset_peak_memory_stats(self._setting.device)
            self._before = torch.cuda.memory_allocated(self._setting.device)
        else:
            self._live = self._counting.enter_context(Live(meta=False))

    def stop(self) -> int:
        """Return the peak since `start`."""
        if self._setting.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._setting.device) - self._before
        self._counting.close()
        return self._live.peak

    def of(self, work: Work) -> int:
        """Return the peak while work runs."""
        self.start()
        work()
        return self.stop()


@contextmanager
def evaluations(networks: Sequence[nn.Module], batch: int) -> Iterator[list[float]]:
    """Count network evaluations into a list of one number, in forward passes of one batch.

    A forward pass whose gradient is kept is counted with its backward pass: three.
    """
    count = [0.0]

    def seen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        del module, kwargs, out
        count[0] += len(args[0]) * (3 if torch.is_grad_enabled() else 1) / batch

    hooks = [n.register_forward_hook(seen, with_kwargs=True) for n in networks]
    try:
        yield count
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class Table:
    """Rows under a title, each with the same keys but for the last ones."""

    title: str
    rows: list[Row]

    def markdown(self) -> str:
        """Return the table in Markdown."""
        keys = list(dict.fromkeys(k for row in self.rows for k in row))
        if {"ratio", "low", "high"} <= set(keys):
            keys = [k for k in keys if k not in ("low", "high")]
        lines = [f"## {self.title}\n", f"| {' | '.join(keys)} |"]
        lines.append("| --- |" + " ---: |" * (len(keys) - 1))
        lines += [f"| {' | '.join(_cell(row, k) for k in keys)} |" for row in self.rows]
        return "\n".join(lines) + "\n"


def _cell(row: Row, key: str) -> str:
    value = row.get(key)
    if key == "ratio" and "low" in row:
        return f"{value:.3f} ({row['low']:.3f} to {row['high']:.3f})"
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


@dataclass
class Result:
    """What a benchmark found. about: what was compared, and how to read it."""

    about: str
    tables: list[Table]

    def write(self, name: str, folder: Path, where: Row) -> None:
        """Write folder/name.json and folder/name.md."""
        folder.mkdir(parents=True, exist_ok=True)
        told = {"name": name, "environment": where, **asdict(self)}
        (folder / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        parts = [f"# {name}\n", self.about + "\n", *(t.markdown() for t in self.tables)]
        parts.append("; ".join(f"{k} {v}" for k, v in where.items()) + ".\n")
        (folder / f"{name}.md").write_text("\n".join(parts), encoding="utf-8")

    def missed(self) -> list[str]:
        """Return the rows whose target was not met."""
        rows = [row for table in self.tables for row in table.rows]
        return [str(row["what"]) for row in rows if row.get("met") is False]


def environment(setting: Setting) -> Row:
    """Return what the figures depend on beside the code."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {
        "device": _device_name(setting.device),
        "precision": setting.precision,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load average at the start": round(load, 1),
        **{name: version(name) for name in VERSIONS},
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def _commit() -> str:
    """Return the commit, marked where the files are no longer the commit's."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short", "HEAD")
    if not commit:
        return "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "../src", ".")
    return commit + (" and changes" if changed else "")


def quartiles(seconds: Sequence[float]) -> Row:
    """Return the median and the quartiles of times, in ms."""
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"ms": 1e3 * middle, "from": 1e3 * low, "to": 1e3 * high}


def bytes_of(tensors: Sequence[Tensor]) -> int:
    """Return the memory that tensors hold."""
    return sum(t.numel() * t.element_size() for t in tensors)
