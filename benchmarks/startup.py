"""Seconds and memory from nothing: `fewstep --help`, `import fewstep`, a model loaded."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from measure import Result, Row, Setting, Table, Work, alternate, paired
from networks import classes

import fewstep.resident
from fewstep.distill.plan import Stage
from fewstep.folders import save_model

ROUNDS = 3
SIZES = ((16, 32), (64, 128), (128, 256))
# What a process says of itself when it ends: its seconds of processor, and the most bytes it held.
LAST = f"""
import sys, time
used = time.process_time()
sys.path.insert(0, {str(Path(fewstep.resident.__file__).parent)!r})  # without its package
from resident import resident_peak
print(used, resident_peak())
"""


def process(code: str) -> str:
    """Run a line of Python in a fresh process; return the last line that it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def described(what: str, code: str, seconds: Row) -> Row:
    """Return the row of a line of code; its processor time and memory are one reading."""
    worked, held = map(float, process(f"{code}\n{LAST}").split())
    return {"what": what, **seconds, "processor, s": worked, "peak MiB": held / 2**20}


def run(setting: Setting) -> Result:
    lines = {
        "python, nothing else": "pass",
        "import torch": "import torch",
        "import fewstep": "import fewstep",
        "fewstep --help": "from fewstep.cli.main import main\nmain(['--help'])",
    }
    with tempfile.TemporaryDirectory() as temporary:
        parameters = {}
        for channels in SIZES:
            model = classes("digits", channels=channels)(Setting()).student
            folder = Path(temporary) / f"model-{channels[0]}"
            made = {"stage": Stage("stage-one", "teacher"), "w_range": (0.0, 4.0)}
            model.card = model.card.model_copy(update=made)
            save_model(model, folder)
            count = sum(p.numel() for p in model.parameters())
            name = f"fewstep.load, {count:,} parameters"
            parameters[name] = count
            lines[name] = f"import fewstep\nfewstep.load({str(folder)!r}, {setting.device.type!r})"
        smallest = Path(temporary) / f"model-{SIZES[0][0]}"
        stock = "diffusers' from_pretrained, the smallest"
        lines[stock] = (
            "from diffusers import UNet2DConditionModel\n"
            f"UNet2DConditionModel.from_pretrained({str(smallest / 'unet')!r})"
        )
        times = alternate(setting, {n: _work(c) for n, c in lines.items()}, ROUNDS)
        rows = [described(n, c, _seconds(times.wall[n])) for n, c in lines.items()]
        pairs = {
            "fewstep.load / diffusers' from_pretrained": (next(iter(parameters)), stock),
            "fewstep --help / import torch": ("fewstep --help", "import torch"),
        }
        ratios = [
            {"what": what, **paired(times.wall[a], times.wall[b])} for what, (a, b) in pairs.items()
        ]
    return Result(__doc__, [Table("Processes", rows), Table("Ratios", ratios)])


def _work(code: str) -> Work:
    return lambda: process(f"{code}\nprint()\nprint(0)")


def _seconds(wall: list[float]) -> Row:
    ordered = sorted(wall)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return {"seconds": middle, "from": ordered[0], "to": ordered[-1]}
