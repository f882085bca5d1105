"""The driver: starts the workers, gives each step its time, and gathers what they record.

    bash benchmarks/gpu/run.sh --out FOLDER --data cifar10.npz --minutes 12

It uses the standard library alone. results.json in the folder has everything that has been recorded
so far; it is written anew whenever a step records something.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Step -> seconds it may take at most, in the order of their value.
LIMITS = {"sanity": 60, "train": 110, "leg": 430, "sampling": 130, "memory": 50, "sweep": 80}
LEAST = {"leg": 90}  # seconds below which a step is not begun; 10 for the others
TESTS = ("tests/train/test_no_wait.py",)
GRACE = 4.0  # seconds kept for the last files


@dataclass
class Worker:
    """A process that runs steps; started early, it waits for its first."""

    command: list[str]
    environment: dict[str, str]
    log: Any
    process: subprocess.Popen[str] | None = field(default=None)

    def start(self) -> None:
        """Start the process, unless it runs."""
        if self.process is not None and self.process.poll() is None:
            return
        self.process = subprocess.Popen(
            self.command, cwd=ROOT, env=self.environment, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        threading.Thread(target=copy_lines, args=(self.process, self.log), daemon=True).start()

    def ask(self, step: str, seconds: float) -> None:
        """Let the process begin a step."""
        self.start()
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(f"{step} {seconds:.1f}\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        """End the process and what it started."""
        if self.process is None:
            return
        if self.process.stdin is not None and self.process.poll() is None:
            self.process.stdin.close()
        try:
            self.process.wait(0.5)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def copy_lines(process: subprocess.Popen[str], log: Any) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        say(line.rstrip("\n"), log)


def say(line: str, log: Any) -> None:
    print(line, flush=True)
    log.write(line + "\n")
    log.flush()


class Driver:
    """All steps of one call."""

    def __init__(self, given: argparse.Namespace) -> None:
        """Start the clock."""
        self.given, self.begun = given, time.monotonic()
        self.deadline = self.begun + 60 * given.minutes - GRACE
        given.out.mkdir(parents=True, exist_ok=True)
        given.work.mkdir(parents=True, exist_ok=True)
        self.log = (given.out / "log.txt").open("a", encoding="utf-8")
        self.environment = environment(given)
        self.steps: dict[str, dict[str, Any]] = {}
        self.gathered = ""
        options = ["--device", given.device, "--work", str(given.work), "--out", str(given.out)]
        options += ["--tiny"] if given.tiny else []
        for name in ("data", "features", "start"):
            if getattr(given, name) is not None:
                options += [f"--{name}", str(getattr(given, name))]
        command = [sys.executable, "-m", "benchmarks.gpu.step", *options]
        self.bench = Worker(command, self.environment, self.log)
        self.leg = Worker([*command, "--prepare"], self.environment, self.log)

    def run(self) -> None:
        """Run the steps in turn, each within its time, and write results.json."""
        wanted = [s for s in LIMITS if s in self.given.steps]
        for step in wanted:  # a result of an earlier call is not one of this call
            for end in ("json", "done"):
                (self.given.work / f"{step}.{end}").unlink(missing_ok=True)
        workers = {s: self.leg if s == "leg" else self.bench for s in wanted if s != "sanity"}
        try:
            for worker in {id(w): w for w in workers.values()}.values():
                worker.start()
            for step in wanted:
                self.step(step, workers.get(step))
        finally:
            for worker in (self.bench, self.leg):
                worker.stop()
            self.gather()
            say(self.table(), self.log)

    def step(self, step: str, worker: Worker | None) -> None:
        """Run one step, if there is time."""
        left = self.deadline - time.monotonic()
        limit = float(self.given.limit.get(step, LIMITS[step]))
        seconds = min(limit, left)
        if left < (1 if self.given.tiny else LEAST.get(step, 10)):
            self.steps[step] = {"state": f"not begun: {left:.0f} s were left"}
            return
        say(f"== {step}: at most {seconds:.0f} s of {left:.0f} s left", self.log)
        began = time.monotonic()
        state = self.sanity(seconds) if worker is None else self.wait(step, worker, seconds)
        self.steps[step] = {"state": state, "seconds": round(time.monotonic() - began, 1)}
        self.gather()

    def wait(self, step: str, worker: Worker, seconds: float) -> str:
        """Return how the step ended; a worker that goes on too long is stopped."""
        done = self.given.work / f"{step}.done"
        # A worker stops by itself; half a minute of patience only where there is time for it.
        end = min(time.monotonic() + seconds + 10, self.deadline)
        worker.ask(step, seconds - 1)
        while time.monotonic() < end:
            time.sleep(0.2)
            self.gather()
            if done.is_file():
                text = done.read_text(encoding="utf-8").strip()
                return f"failed: {text.splitlines()[-1]}" if text else "done"
            assert worker.process is not None
            if worker.process.poll() is not None:
                return f"failed: the process ended with {worker.process.returncode}"
        worker.stop()
        return "stopped: its time was up"

    def sanity(self, seconds: float) -> str:
        """Run the tests that need a GPU; record how many pass."""
        command = [
            sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-rs", *TESTS
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=self.environment, capture_output=True, text=True,
                timeout=seconds, check=False,
            )  # fmt: skip
            output, code = done.stdout + done.stderr, done.returncode
        except subprocess.TimeoutExpired as error:
            # With text=True it is text, whatever the type says.
            output, code = f"{error.stdout or ''!s}\ntime was up", -1
        counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped)", output)}
        result = {
            "step": "sanity",
            "results": {"returned": code, **counts, "output": output[-6000:]},
        }
        (self.given.work / "sanity.json").write_text(json.dumps(result), encoding="utf-8")
        say(output[-2000:], self.log)
        return "done" if code == 0 else f"failed: pytest returned {code}"

    def gather(self) -> None:
        """Write results.json, if anything is new."""
        found = {}
        for step in LIMITS:
            path = self.given.work / f"{step}.json"
            if step in self.given.steps and path.is_file():
                found[step] = json.loads(path.read_text(encoding="utf-8"))
        told = {
            "command": self.given.shown,
            "commit": self.environment["FEWSTEP_COMMIT"],
            "minutes": self.given.minutes,
            "seconds": round(time.monotonic() - self.begun, 1),
            "states": self.steps,
            "steps": found,
        }
        text = json.dumps({**told, "seconds": 0})
        if text != self.gathered:
            self.gathered = text
            partial = self.given.out / "results.partial"
            partial.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
            partial.replace(self.given.out / "results.json")

    def table(self) -> str:
        """Return the states of the steps, for the end of the output."""
        lines = [f"{n}: {s['state']} ({s.get('seconds', 0)} s)" for n, s in self.steps.items()]
        return "\n".join(["== the end", *lines])


def environment(given: argparse.Namespace) -> dict[str, str]:
    """Return the environment of the workers."""
    told = dict(os.environ)
    paths = [str(ROOT / "src"), str(ROOT), told.get("PYTHONPATH", "")]
    told["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
    told["FEWSTEP_COMMIT"] = given.commit
    told["PYTHONUNBUFFERED"] = told["HF_HUB_OFFLINE"] = "1"
    told.setdefault("TORCHINDUCTOR_CACHE_DIR", str(given.work / "inductor"))
    if given.device == "cpu":
        told["CUDA_VISIBLE_DEVICES"] = ""
    if given.tiny:
        # Compiling takes longer than a trial may; torch.compile then returns the network as it is.
        told["TORCH_COMPILE_DISABLE"] = told["OMP_NUM_THREADS"] = "1"
    return told


def limits(text: str) -> dict[str, float]:
    """Return the seconds of "leg=300,train=90"."""
    found = {}
    for part in filter(None, text.split(",")):
        name, _, seconds = part.partition("=")
        if name not in LIMITS:
            raise argparse.ArgumentTypeError(f"no step {name!r}; steps are {', '.join(LIMITS)}")
        found[name] = float(seconds)
    return found


def steps(text: str) -> list[str]:
    """Return the names of "train,leg". Raises ArgumentTypeError for one that is no step."""
    names = text.split(",")
    unknown = [n for n in names if n not in LIMITS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no step {unknown[0]!r}; steps are {', '.join(LIMITS)}")
    return names


def head() -> str:
    """Return the commit of the files, where git knows it."""
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of what is to be kept")
    parser.add_argument("--work", type=Path, help="folder of the rest; by default OUT/work")
    parser.add_argument("--data", type=Path, help="images, packed by pack_data.py")
    parser.add_argument("--features", type=Path, help="classifier for the metrics; else trained")
    parser.add_argument("--start", type=Path, help="--out of an earlier leg to go on from")
    parser.add_argument("--minutes", type=float, default=12.0, help="time for everything")
    parser.add_argument("--steps", type=steps, default=list(LIMITS), help="for example train,leg")
    parser.add_argument("--limit", type=limits, default={}, help="seconds, for example leg=300")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="a small network, to try the script")
    parser.add_argument("--commit", default="", help="of the files; by default what git says")
    given = parser.parse_args()
    given.work = (given.work or given.out / "work").resolve()
    given.out = given.out.resolve()
    for name in ("data", "features", "start"):
        path = getattr(given, name)
        setattr(given, name, None if path is None else path.resolve())
    given.commit = given.commit or head()
    given.shown = " ".join(["bash benchmarks/gpu/run.sh", *sys.argv[1:]])
    Driver(given).run()


if __name__ == "__main__":
    main()
