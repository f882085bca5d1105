"""Train and measure the small latent models on a GPU, in one call: several chains side by side.

    python benchmarks/gpu/small_models.py --out FOLDER --data train.parquet --minutes 9

The networks are small, and one process of theirs leaves most of a GPU idle. A chain is a process
that runs `fewstep` commands one after the other, each when what it needs is there. When a command
fails or the time is up, that chain ends; the others go on, and what is finished is packed:

    results.json                   every command with its state and wall time; device and commit
    reports.tar.gz                 reports, tables, recipes, cards, logs and pictures of all runs
    parts.tar.gz                   autoencoder, tokenizers, text encoders, the metrics' classifier
    <model>.tar.gz                 whole folders of the models in `MODELS`

With --start, teachers, their parts and the classifier are those of an earlier call's archives.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

import torch  # noqa: E402
from benchmarks.gpu import common  # noqa: E402
from benchmarks.gpu.run import head  # noqa: E402
from examples import latent_parts  # noqa: E402

from fewstep.atomic import write_json  # noqa: E402
from fewstep.cli.main import main as fewstep_main  # noqa: E402

PACKING = 12.0  # seconds kept for packing
LIMIT = 16 * 2**20  # bytes of a file that comes back
TOTAL = 56 * 2**20  # bytes of all files together
# Name of the file -> folder of a model, in the order of their worth.
MODELS = {
    "latent-small-teacher": "latent-small/teacher",
    "flow-small-teacher": "flow-small/teacher",
    "latent-small-student-4": "latent-small/student-4",
    "flow-small-student-4": "flow-small/student-4",
    "flow-small-student-2": "flow-small/student-2",
    "latent-small-one": "one/latent-small/student-4",
    "cifar10-small-teacher": "pixels/cifar10-small/teacher",
    "digits-teachers": "pixels/teachers",
}
GIVEN = ("parts", "latent-small-teacher", "flow-small-teacher")  # to a call with --start
REPORTED = ("*.json", "*.csv", "*.md", "*.yaml", "*.jsonl", "*.txt")
STOCK = ("config.json", "model_index.json", "tokenizer.json", "vocab.json", "tokenizer_config.json")
SKIPPED = {"checkpoints", "tensorboard", "features", "parts", "cache", "reference"}
PICTURES = ("latent-small/*/*.png", "flow-small/*/*.png", "strong/*/*/sheets/w10.png")
TINY = (
    *("teacher.updates=2", "teacher.batch_size=4", "distill.updates=2", "distill.batch_size=4"),
    *("evaluate.samples=20", "evaluate.batch_size=20", "evaluate.reference_steps=5"),
    "evaluate.w=[1, 4]",
)
DIRECT = "distill.stages=[{parent: teacher, steps: 4, order: 2, substeps: 4, updates: 600}]"
DIRECT_PIXELS = (
    "[{parent: teacher, steps: 8, order: 2}, "
    "{parent: teacher, steps: 4, order: 2, substeps: 4, updates: 1100}, "
    "{parent: student-4, steps: 2}, {parent: student-2, steps: 1}]"
)
DIRECT_DIGITS = (
    "[{parent: teacher, steps: 8, order: 2, updates: 600}, "
    "{parent: teacher, steps: 4, order: 2, substeps: 4, updates: 600}, "
    "{parent: student-4, steps: 2}, {parent: student-2, steps: 1}]"
)


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
    """All chains of one call; names of folders are those of the recipes."""

    def __init__(self, work: Path, data: Path, *, tiny: bool) -> None:
        """Make the plan for a folder of work and a parquet file of images."""
        self.work, self.data, self.tiny = work, data, tiny
        self.start = work / "start"

    def chains(self) -> dict[str, list[Step]]:
        """Return the steps of each chain, every chain after those that it waits for."""
        chains = {}
        if not (self.start / "features").is_dir():
            chains["features"] = [self.features()]
        for name in ("latent-small", "flow-small"):
            if self.teacher_folder(name) == self.work / name / "teacher":
                chains[f"{name}-teacher"] = self.teacher(name)
        for name, seed in (("latent-small", 0), ("flow-small", 0), ("flow-small", 1)):
            own, run = [f"seed={seed}", "evaluate.teacher_steps=[4]", *self.plan(name)], name
            run += f"-seed-{seed}" if seed else ""
            chains[f"{run}-cells"] = [self.cells(name, name, run, own)]
            chains[run] = self.students(name, name, self.work / run, run, own)
        for model in ("latent-small", "flow-small"):
            cells = f"strong-{model}"
            chains[f"{cells}-cells"] = [self.cells("strong-guidance", model, cells, [])]
            for states in ("noised", "trajectory"):
                chains[f"{cells}-{states}"] = self.strong(model, cells, states)
        own = ["network.w_features=one", "evaluate.teacher_steps=[4]", *self.plan("latent-small")]
        out = self.work / "one/latent-small"
        chains["one-latent-small"] = self.students(
            "latent-small", "latent-small", out, "latent-small", own
        )
        chains["cifar10-small"] = self.pixels("cifar10-small", 0, DIRECT_PIXELS)
        for seed in (0, 1, 2):
            chains[f"digits-{seed}"] = self.pixels("digits", seed, DIRECT_DIGITS)
        for seed in (0, 1, 2):
            chains[f"one-digits-{seed}"] = self.digits(seed)
        return chains

    def teacher_folder(self, name: str) -> Path:
        """Return the folder of a recipe's teacher: of an earlier call, or made in this one."""
        earlier = self.start / name / "teacher"
        return earlier if earlier.is_dir() else self.work / name / "teacher"

    def features_folder(self) -> Path:
        """Return the folder of the metrics' classifier: of an earlier call, or made here."""
        earlier = self.start / "features"
        return earlier if earlier.is_dir() else self.work / "features"

    def teacher(self, name: str) -> list[Step]:
        """Return the steps to the parts and the teacher of a recipe."""
        flow, vae = name == "flow-small", self.work / "parts/latent-small-unfinished/vae"
        given = ["--pipeline", "sd3", "--vae", str(vae)] if flow else []
        if self.tiny:
            given += ["--clip-updates", "2", *([] if flow else ["--vae-updates", "2"])]
        folder = self.work / "parts" / name
        parts = ("parts", str(self.data), "--out", str(folder), *given)
        own = [f"latents.folder={folder}", "teacher.checkpoint_every=1000", *self.plan(name)]
        train = ("train", name, "--out", str(self.work / name), *self.set(name, own))
        needs = vae if flow else self.images("class")
        return [Step(parts, (needs,)), Step(train, (self.images("prompt"),))]

    def plan(self, name: str) -> list[str]:
        """Return the stages of a recipe where they are others here: a student straight from it."""
        stages = "[{parent: teacher, steps: 4, order: 2, substeps: 4}]"
        return [f"distill.stages={stages}"] if name == "latent-small" else []

    def cells(self, recipe: str, model: str, run: str, own: Sequence[str]) -> Step:
        """Return the step that measures the teacher of a model alone, as a recipe asks."""
        settings = [*own, "distill.stages=[]"]
        return self.report(recipe, model, self.work / "cells" / run, settings)

    def students(
        self, recipe: str, model: str, out: Path, cells: str, own: Sequence[str]
    ) -> list[Step]:
        """Return the steps that train students of a model's teacher and measure them.

        cells: name of the run that measures the teacher, while the students are trained.
        """
        teacher, before = self.teacher_folder(model), self.work / "cells" / cells
        given = () if out == teacher.parent else ("--teacher", str(teacher))
        distill = ("distill", recipe, "--out", str(out), *given, *self.set(model, own))
        copied = ("copy", str(before / "evaluation"), str(out / "evaluation"))
        return [
            Step(distill, (teacher / "fewstep.json",)),
            Step(copied, (before / "report.json",)),
            self.report(recipe, model, out, own),
        ]

    def strong(self, model: str, cells: str, states: str) -> list[Step]:
        """Return the steps to students by targets of both orders at these states."""
        train, measure = [], []
        for order in (2, 1):
            own = [f"distill.stages.0.order={order}", f"distill.states={states}"]
            out = self.work / "strong" / model / f"order-{order}-{states}"
            steps = self.students("strong-guidance", model, out, cells, own)
            train.append(steps[0])
            measure += steps[1:]
        return train + measure

    def digits(self, seed: int) -> list[Step]:
        """Return the steps to both kinds of features of w on the digits, which take no GPU."""
        slow, one = (self.work / "one" / f"digits-{seed}" / kind for kind in ("slow", "one"))
        short = [*TINY] if self.tiny else ["evaluate.reference_steps=64"]
        stages = DIRECT.replace("600", "2") if self.tiny else DIRECT
        short += [f"seed={seed}", stages, "evaluate.teacher_steps=[4]"]
        settings = [x for s in short for x in ("--set", s)]
        common = ("digits", "--device", "cpu", *settings)
        features = ("--set", "network.w_features=one")
        given = ("--out", str(one), "--teacher", str(slow / "teacher"), *features)
        return [
            Step(("report", *common, "--out", str(slow))),
            Step(("distill", *common, *given)),
            Step(("copy", str(slow / "evaluation"), str(one / "evaluation"))),
            Step(("report", *common, *given)),
        ]

    def pixels(self, recipe: str, seed: int, stages: str) -> list[Step]:
        """Return the steps to a pixel model and its students straight from the guided pair."""
        name = f"{recipe}-{seed}" if recipe == "digits" else recipe
        own = ["evaluate.teacher_steps=[]", "evaluate.stage_one_steps=[]", f"seed={seed}"]
        own += ["evaluate.solver_steps=[]", "evaluate.reference_steps=64"]
        common: tuple[str, ...] = ("--out", str(self.work / "pixels" / name))
        if recipe == "digits":
            common += ("--device", "cpu")
        else:
            own += [f"data.name={self.data}"]
        own += [f"distill.stages={stages}", *(TINY if self.tiny else ())]
        settings = [x for s in own for x in ("--set", s)]
        return [
            Step(("train", recipe, *common, *settings)),
            Step(("report", recipe, *common, *settings)),
        ]

    def features(self) -> Step:
        """Return the step that trains the classifier of the metrics."""
        out = ("--out", str(self.work / "features"), "--name", "cifar32", "--size", "32")
        epochs = "1" if self.tiny else "6"
        command = ("features", "train", str(self.data), *out, "--epochs", epochs)
        return Step(command, (self.images("class"),))

    def report(self, recipe: str, model: str, out: Path, own: Sequence[str]) -> Step:
        """Return the step that measures what is not measured yet, and writes the report."""
        teacher, features = self.teacher_folder(model), self.features_folder()
        given = () if out == teacher.parent else ("--teacher", str(teacher))
        settings = self.set(model, [*own, f"evaluate.features={features}"])
        command = ("report", recipe, "--out", str(out), *given, *settings)
        return Step(command, (teacher / "fewstep.json", features / "features.json"))

    def set(self, model: str, own: Sequence[str]) -> list[str]:
        """Return the options that set these keys, and those of every run on a model's latents."""
        shared = [f"data.name={self.data}", "distill.checkpoint_every=100000"]
        shared += ["latents.dtype=float16"] if model == "flow-small" else []
        shared += TINY if self.tiny else ()
        return [x for s in (*shared, *own) for x in ("--set", s)]

    def images(self, cond: str) -> Path:
        """Return the file that is there once the images are decoded, with classes or captions."""
        return self.work / f"decoded-{cond}"


def run_chain(name: str, steps: Sequence[Step], work: Path, deadline: float) -> None:
    """Run the steps of a chain in this process; record each in work/chains/<name>.json."""
    programs: dict[str, Callable[[list[str]], object]] = {
        "parts": latent_parts.main,
        "copy": _copy,
    }
    record: list[dict[str, Any]] = []
    path = work / "chains" / f"{name}.json"
    for step in steps:
        row: dict[str, Any] = {"command": " ".join(step.command), "state": "waiting"}
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


def _copy(folders: list[str]) -> None:
    """Copy a folder. One that is there holds more: the same call continues after a stop."""
    if not Path(folders[1]).exists():
        shutil.copytree(folders[0], folders[1])


def _wait(needs: Sequence[Path], deadline: float) -> bool:
    while not all(p.exists() for p in needs):
        if time.time() > deadline:
            return False
        time.sleep(0.2)
    return True


def decode(plan: Plan) -> None:
    """Decode the images once, before any chain opens them."""
    from fewstep.data import DataConfig, open_dataset

    for cond in ("class", "prompt"):
        config = DataConfig(name=str(plan.data), size=32, held_out=0.05, cond=cond)
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
            command = [sys.executable, __file__, *options, "--chain", name]
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


def drive(given: argparse.Namespace) -> None:
    """Run all chains within the time, and pack what they have made."""
    begun = time.time()
    deadline = begun + 60 * given.minutes - PACKING
    for name in ("logs", "chains"):
        (given.work / name).mkdir(parents=True, exist_ok=True)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.start is not None:
        unpack(given.start, given.work / "start")
    plan = Plan(given.work, given.data, tiny=given.tiny)
    names = given.chains or list(plan.chains())
    os.environ.update(environment(given))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results: dict[str, Any] = {
        "command": "python benchmarks/gpu/small_models.py " + " ".join(sys.argv[1:]),
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
    results["packed"] = pack(given)
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


def pack(given: argparse.Namespace) -> dict[str, str]:
    """Write the archives; return file -> its size, or why it is not there."""
    work, packed = given.work, {}
    for teacher in work.glob("pixels/digits-*/teacher"):
        _copy([str(teacher), str(work / "pixels/teachers" / teacher.parent.name)])
    parts = [*work.glob("parts/*-unfinished"), work / "features"]
    wanted: dict[str, list[Path]] = {
        "reports": [*_reported(work), *(p for pattern in PICTURES for p in work.glob(pattern))],
        "parts": [p for p in parts if p.is_dir()],
        **{name: [work / folder] for name, folder in MODELS.items() if (work / folder).is_dir()},
        # A student without a report can be measured elsewhere.
        **{
            "-".join(p.parts[-3:-1]): [p]
            for p in sorted(work.glob("strong/*/*/student-4"))
            if not (p.parent / "report.json").is_file()
        },
    }
    total = 0
    for name in ("reports", "parts", *dict.fromkeys([*MODELS, *wanted])):
        if name in packed:
            continue
        given_before = given.start is not None and name in GIVEN
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


def unpack(earlier: Path, to: Path) -> None:
    """Unpack the teachers, parts and classifier of an earlier call, unless they are there."""
    if to.is_dir():
        return
    partial = to.with_name(to.name + "-unfinished")
    for name in GIVEN:
        with tarfile.open(earlier / f"{name}.tar.gz") as archive:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
        drive(given)
    else:
        steps = Plan(given.work, given.data, tiny=given.tiny).chains()[given.chain]
        run_chain(given.chain, steps, given.work, given.deadline)


if __name__ == "__main__":
    main()
