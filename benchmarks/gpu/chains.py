"""Chains of `fewstep` commands side by side on one GPU, in one call, and what is packed of them.

The networks are small, and one process of theirs leaves most of a GPU idle. A chain is a process
that runs commands one after the other, each when what it needs is there. When a command fails or
the time is up, that chain ends; the others go on, and what is finished is packed:

    results.json                   every command with its state and wall time; device and commit
    reports.tar.gz                 reports, tables, recipes, cards, logs and pictures of all runs
    parts.tar.gz                   autoencoder, tokenizers, text encoders, the metrics' classifier
    <model>.tar.gz                 whole folders of the plan's models

With --start, models are those of an earlier call's archives. A second call in the same folder of
work continues what the first left unfinished. Which chains there are is a `Plan` in a script of
its own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from benchmarks.gpu import common
from benchmarks.gpu.run import head
from examples import latent_parts

from fewstep.atomic import write_json
from fewstep.cli.main import main as fewstep_main
from studies import consistency

ROOT = Path(__file__).resolve().parents[2]
PACKING = 12.0  # seconds kept for packing
LIMIT = 16 * 2**20  # bytes of a file that comes back
TOTAL = 56 * 2**20  # bytes of all files together
REPORTED = ("*.json", "*.csv", "*.md", "*.yaml", "*.jsonl", "*.txt")
STOCK = ("config.json", "model_index.json", "tokenizer.json", "vocab.json", "tokenizer_config.json")
SKIPPED = {"checkpoints", "tensorboard", "features", "parts", "cache", "reference", "start"}


@dataclass(frozen=True)
class Step:
    """One command of a chain.

    Attributes:
        command: arguments of `fewstep`; or "parts" and those of examples/latent_parts.py; or "copy"
            and two folders.
        needs: files or folders that must be there before it begins.
    """

    command: tuple[str, ...]
    needs: tuple[Path, ...] = ()


class Plan:
    """All chains of one call.

    Attributes:
        models: name of the file -> folder of a model, in the order of their worth.
        given: the archives of an earlier call that --start unpacks, each where it is there.
        pictures: patterns of the pictures that are packed with the reports.
        conds: "class" and "prompt", the conditions with which images are decoded before any chain
            opens them. size: of these images in pixels.
    """

    models: ClassVar[Mapping[str, str]] = {}
    given: ClassVar[Sequence[str]] = ()
    pictures: ClassVar[Sequence[str]] = ()
    conds: ClassVar[Sequence[str]] = ("class",)
    size: ClassVar[int] = 32

    def __init__(self, work: Path, data: Path, *, tiny: bool) -> None:
        """Make the plan for a folder of work and a parquet file of images."""
        self.work, self.data, self.tiny = work, data, tiny
        self.start = work / "start"

    def chains(self) -> dict[str, list[Step]]:
        """Return the steps of each chain, every chain after those that it waits for."""
        raise NotImplementedError

    def collect(self) -> None:
        """Arrange what is there before it is packed."""

    def unreported(self) -> dict[str, list[Path]]:
        """Return more archives: models without a report, which can be measured elsewhere."""
        return {}

    def earlier_or_new(self, folder: str) -> Path:
        """Return a folder of an earlier call where --start has it, else that of this call."""
        earlier = self.start / folder
        return earlier if earlier.is_dir() else self.work / folder

    def images(self, cond: str) -> Path:
        """Return the file that is there once the images are decoded, with classes or captions."""
        return self.work / f"decoded-{cond}"


def run_chain(name: str, steps: Sequence[Step], work: Path, deadline: float) -> None:
    """Run the steps of a chain in this process; record each in work/chains/<name>.json.

    Steps that an earlier call has done are not run again.
    """
    programs: dict[str, Callable[[list[str]], object]] = {
        "parts": latent_parts.main,
        "copy": copy,
        "consistency": consistency.main,
    }
    done = {row["command"]: row for row in chain_record(work, name) if row["state"] == "done"}
    record: list[dict[str, Any]] = []
    path = work / "chains" / f"{name}.json"
    for step in steps:
        row: dict[str, Any] = {"command": " ".join(step.command), "state": "waiting"}
        if row["command"] in done:
            record.append(done[row["command"]])
            continue
        record.append(row)
        write_json(path, record)
        began = time.time()
        if not _wait(step.needs, deadline):
            row["state"] = "not begun: " + ", ".join(str(p) for p in step.needs if not p.exists())
            write_json(path, record)
            break
        row |= {"waited": round(time.time() - began, 1), "state": "stopped: its time was up"}
        write_json(path, record)
        began = time.time()
        print(f"[{name}] {row['command']}", flush=True)
        try:
            program, *arguments = step.command
            found = programs.get(program)
            code = fewstep_main(list(step.command)) if found is None else found(arguments)
            failed = isinstance(code, int) and code != 0
            row["state"] = f"failed: exit code {code}" if failed else "done"
        except BaseException as error:  # noqa: BLE001  whatever it is, it is recorded
            row["state"] = f"failed: {type(error).__name__}: {error}"[:2000]
            traceback.print_exc()
        row["seconds"] = round(time.time() - began, 1)
        print(f"[{name}] {row['state']} after {row['seconds']} s", flush=True)
        write_json(path, record)
        if row["state"] != "done":
            break


def copy(folders: list[str]) -> None:
    """Copy a folder, unless it is there: a call that continues has added to it."""
    source, target = map(Path, folders)
    if not target.exists():
        partial = target.with_name(target.name + "-unfinished")
        shutil.copytree(source, partial, dirs_exist_ok=True)
        partial.rename(target)


def _wait(needs: Sequence[Path], deadline: float) -> bool:
    while not all(p.exists() for p in needs):
        if time.time() > deadline:
            return False
        time.sleep(0.2)
    return True


def decode(plan: Plan) -> None:
    """Decode the images once, before any chain opens them."""
    from fewstep.data import DataConfig, open_dataset

    for cond in plan.conds:
        config = DataConfig(name=str(plan.data), size=plan.size, held_out=0.05, cond=cond)
        print(open_dataset(config).summary, flush=True)
        plan.images(cond).touch()


@contextlib.contextmanager
def running(
    names: Sequence[str], given: argparse.Namespace, deadline: float
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Start one process per chain; end those that still run when the block ends."""
    started: dict[str, subprocess.Popen[bytes]] = {}
    options = ["--out", str(given.out), "--work", str(given.work), "--data", str(given.data)]
    options += ["--tiny"] if given.tiny else []
    try:
        for name in names:
            command = [sys.executable, sys.argv[0], *options, "--chain", name]
            with (given.work / "logs" / f"{name}.txt").open("wb") as log:
                started[name] = subprocess.Popen(
                    [*command, "--deadline", str(deadline)],
                    cwd=ROOT, env=environment(given), start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                )  # fmt: skip
        yield started
    finally:
        for process in started.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def environment(given: argparse.Namespace) -> dict[str, str]:
    """Return the environment of the chains."""
    variables = dict(os.environ)
    paths = [str(ROOT / "src"), str(ROOT), variables.get("PYTHONPATH", "")]
    variables["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
    variables |= {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "FEWSTEP_COMMIT": given.commit}
    variables.setdefault("OMP_NUM_THREADS", "2")
    variables["FEWSTEP_CACHE"] = str(given.work / "cache")
    return variables


def drive(given: argparse.Namespace, make: type[Plan]) -> None:
    """Run all chains within the time, and pack what they have made."""
    begun = time.time()
    deadline = begun + 60 * given.minutes - PACKING
    if given.start is not None:
        unpack(given.start, given.work / "start", make.given)
    plan = make(given.work, given.data, tiny=given.tiny)
    names = given.chains or list(plan.chains())
    unknown = [name for name in names if name not in plan.chains()]
    if unknown:
        raise SystemExit(
            f"--chains must be among {', '.join(plan.chains())}, got {', '.join(unknown)}. Choose "
            "from these."
        )
    for name in ("logs", "chains"):
        (given.work / name).mkdir(parents=True, exist_ok=True)
    given.out.mkdir(parents=True, exist_ok=True)
    os.environ.update(environment(given))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results: dict[str, Any] = {
        "command": f"python benchmarks/gpu/{Path(sys.argv[0]).name} " + " ".join(sys.argv[1:]),
        "minutes": given.minutes,
        **common.environment(common.Context(device, given.tiny, given.work, given.out)),
    }
    if given.in_turn:
        decode(plan)
        for name in names:
            run_chain(name, plan.chains()[name], given.work, deadline)
    else:
        side_by_side(plan, names, given, results, begun, deadline)
    finish(given, results, names, begun)
    results["packed"] = pack(given, plan)
    finish(given, results, names, begun)
    print(json.dumps(results["packed"]))


def side_by_side(
    plan: Plan,
    names: Sequence[str],
    given: argparse.Namespace,
    results: dict[str, Any],
    begun: float,
    deadline: float,
) -> None:
    """Run every chain in a process of its own until all have ended, or the time is up."""
    shown = ""
    with running(names, given, deadline) as processes:
        decode(plan)
        while time.time() < deadline and any(p.poll() is None for p in processes.values()):
            time.sleep(1)
            states = summary(given.work, names)
            if states != shown:
                print(f"{time.time() - begun:.0f} s: {states}", flush=True)
                shown = states
                finish(given, results, names, begun)


def summary(work: Path, names: Sequence[str]) -> str:
    """Return the chains in one line: how many steps each has begun, and how the last one is."""
    parts = []
    for name in names:
        steps = chain_record(work, name)
        parts.append(f"{name} {len(steps)} {steps[-1]['state'].split(':')[0] if steps else '-'}")
    return "; ".join(parts)


def chain_record(work: Path, name: str) -> list[dict[str, Any]]:
    """Return what a chain has recorded."""
    path = work / "chains" / f"{name}.json"
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    return found


def finish(
    given: argparse.Namespace, results: dict[str, Any], names: Sequence[str], begun: float
) -> None:
    """Write results.json as far as it is known."""
    results["seconds"] = round(time.time() - begun, 1)
    results["chains"] = {name: chain_record(given.work, name) for name in names}
    write_json(given.out / "results.json", results)


def pack(given: argparse.Namespace, plan: Plan) -> dict[str, str]:
    """Write the archives; return file -> its size, or why it is not there."""
    work, packed = given.work, {}
    plan.collect()
    pictures = [p for pattern in plan.pictures for p in work.glob(pattern)]
    parts = [*work.glob("parts/*-unfinished"), work / "features"]
    wanted: dict[str, list[Path]] = {
        "reports": [*_reported(work), *pictures],
        "parts": [p for p in parts if p.is_dir()],
        **{n: [work / folder] for n, folder in plan.models.items() if (work / folder).is_dir()},
        **plan.unreported(),
    }
    total = 0
    for name in ("reports", "parts", *dict.fromkeys([*plan.models, *wanted])):
        if name in packed:
            continue
        earlier = None if given.start is None else given.start / f"{name}.tar.gz"
        given_before = name in plan.given and earlier is not None and earlier.is_file()
        if not wanted.get(name) or given_before:
            packed[name] = "not made"
            continue
        path = given.out / f"{name}.tar.gz"
        size = _archive(path, wanted[name], work)
        kept = size <= LIMIT and total + size <= TOTAL
        packed[name] = f"{size:,} bytes" if kept else f"left out: {size:,} bytes"
        if kept:
            total += size
        else:
            path.unlink()
    return packed


def unpack(earlier: Path, to: Path, names: Sequence[str]) -> None:
    """Unpack these models and parts of an earlier call, those that are there, unless it is done."""
    if to.is_dir():
        return
    there = [path for name in names if (path := earlier / f"{name}.tar.gz").is_file()]
    if not there:
        raise SystemExit(
            f"--start must be a folder with one of {', '.join(f'{n}.tar.gz' for n in names)}, got "
            f"{earlier}. Give the --out of an earlier call."
        )
    partial = to.with_name(to.name + "-unfinished")
    for path in there:
        with tarfile.open(path) as archive:
            archive.extractall(partial, filter="data")
    partial.rename(to)


def _reported(work: Path) -> list[Path]:
    """Return the files of all reports; not the configurations of stock parts."""
    found = [p for pattern in REPORTED for p in sorted(work.rglob(pattern))]
    inside = [(p, p.relative_to(work).parts) for p in found]
    return [p for p, names in inside if p.name not in STOCK and not SKIPPED & {*names}]


def _archive(path: Path, sources: Sequence[Path], root: Path) -> int:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz", compresslevel=1) as archive:
        for source in sources:
            archive.add(source, arcname=str(source.relative_to(root)))
    path.write_bytes(held.getvalue())
    return len(held.getvalue())


def main(make: type[Plan], description: str) -> None:
    """Run the chains of a plan as the command line asks."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="folder of what is to be kept")
    parser.add_argument("--work", type=Path, help="folder of the rest; by default OUT/work")
    parser.add_argument("--data", type=Path, required=True, help="a parquet file of images")
    parser.add_argument("--start", type=Path, help="folder of the archives of an earlier call")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything; default 9")
    parser.add_argument("--chains", type=lambda t: t.split(","), help="only these, by their names")
    parser.add_argument(
        "--in-turn", action="store_true", help="one chain at a time, in one process"
    )
    parser.add_argument("--tiny", action="store_true", help="few updates, to try the script")
    parser.add_argument("--commit", default="", help="of the files; by default what git says")
    parser.add_argument("--chain", help="run this chain here; used by the script itself")
    parser.add_argument("--deadline", type=float, help="when a chain must end; likewise")
    given = parser.parse_args()
    given.work = (given.work or given.out / "work").resolve()
    given.out, given.data = given.out.resolve(), given.data.resolve()
    given.commit = given.commit or os.environ.get("FEWSTEP_COMMIT") or head()
    if given.chain is None:
        drive(given, make)
    else:
        steps = make(given.work, given.data, tiny=given.tiny).chains()[given.chain]
        run_chain(given.chain, steps, given.work, given.deadline)
