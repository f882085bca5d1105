"""One update shared by several processes against its parts in each: what talking costs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from measure import Result, Row, Setting, Table, beside_training
from networks import classes
from training_step import bare_update, kept, stage_one

from fewstep.recipes.config import load_recipe
from fewstep.resident import resident_peak
from fewstep.train import TrainConfig

NAMES = ("digits", "cifar10-small")
ROUNDS = {"digits": 40, "cifar10-small": 12}


def worker(setting: Setting, name: str, folder: Path) -> Row:
    """Return what this process of a run saw; the batch of the recipe is shared by all."""
    count = int(os.environ["WORLD_SIZE"])
    whole = load_recipe(name).distill.batch_size
    subject = classes(name, batch=whole // count)(setting)
    problem, forwards = stage_one(setting, subject)
    config = TrainConfig(updates=ROUNDS[name] + 3, batch_size=whole, checkpoint_every=10**6)
    parts = {"parts": bare_update(subject, forwards)}
    times = beside_training(setting, subject.fresh(), problem, kept(subject), config, folder, parts)
    row = times.ratio(f"{name}, {count} x {whole // count}", "fewstep", "parts")
    return {
        "what": row["what"], "processes": count,
        "parameters": sum(p.numel() for p in subject.student.parameters()),
        "update ms": row["A ms"], "images/s": 1e3 * whole / row["A ms"],
        "resident peak MiB, of each": resident_peak() / 2**20,
    } | {k: row[k] for k in ("ratio", "low", "high", "rounds")}  # fmt: skip


def together(setting: Setting, name: str, count: int) -> Row:
    """Run a worker in each of `count` processes of one thread; return what the first one says."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(count)}
    if count > 1:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": str(count)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, setting.device.type, name, folder]
        begun = [
            subprocess.Popen(
                command,
                env=shared | ({"RANK": str(r), "LOCAL_RANK": str(r)} if count > 1 else {}),
                stdout=subprocess.PIPE,
                text=True,
            )
            for r in range(count)
        ]
        try:
            said = [process.communicate()[0] for process in begun]
        finally:
            for process in begun:
                process.kill()
    if any(process.returncode for process in begun):
        raise SystemExit(f"processes: a worker of {count} failed at {name}")
    row: Row = json.loads(said[0].splitlines()[-1])
    return row


def run(setting: Setting) -> Result:
    cuda = setting.device.type == "cuda"
    most = torch.cuda.device_count() if cuda else (os.cpu_count() or 1)
    counts = [n for n in (1, 2, 4, 8) if n <= most]
    rows: list[Row] = []
    for name in NAMES:
        shared = [together(setting, name, n) for n in counts]
        alone = shared[0]["images/s"]
        rows += [{**row, "of one's speed": row["images/s"] / alone} for row in shared]
    return Result(__doc__ + ABOUT, [Table("update / parts in each process", rows)])


ABOUT = """

Stage one; the batch of the recipe is shared out, and each process has one thread. Ratio: an update,
in which the processes exchange their gradients, to the bare parts of one process's share (see
training_step), by turns in the same processes. "of one's speed" compares separate runs.
"""

if __name__ == "__main__":
    kind, subject_name, out = sys.argv[1:]
    print(json.dumps(worker(Setting(torch.device(kind)), subject_name, Path(out))))
