"""`fewstep demo`: the whole method on the built-in digits, ending in a report."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from fewstep.cli.options import Device, Out, Set, load_run_recipe, say


def demo_command(out: Out = None, set_: Set = None, device: Device = None) -> None:
    """Train, distil and measure on handwritten digits, in minutes.

    Trains a guided teacher and students of 4, 2 and 1 steps on two CPU cores or a GPU, and writes
    report.html. Run the same command again to continue where it stopped. It is the recipe `demo`;
    the full study of the digits is `fewstep report digits`.
    """
    checked = load_run_recipe("demo", set_)
    folder = out or Path("runs") / "demo"
    say("demo: about 2 minutes on two CPU cores; an estimate for this machine follows")
    from fewstep.core.device import choose_device
    from fewstep.recipes.study import run_study

    report = run_study(checked, folder, choose_device(device), say)
    say(_next(folder, report))


def _next(folder: Path, report: Path) -> str:
    """Return what to look at and what to try after the demo."""
    called = "python -m fewstep" if sys.argv[0].endswith(".py") else sys.argv[0]
    fewstep = "fewstep" if shutil.which("fewstep") else called
    student, teacher = folder / "student-4", folder / "teacher"
    steps = (
        ("open", f"{report}"),
        ("draw", f"{fewstep} sample {student} --cond 0-9 --w 2 --out digits.png"),
        ("play", f"make play, or {fewstep} play {student} --teacher {teacher}"),
        ("study", f"{fewstep} report digits    (every student, more samples, longer)"),
        ("read", "docs/guide/images.md for your images, stable-diffusion.md there for your models"),
    )
    lines = (f"  {name:<6} {what}" for name, what in steps)
    return "\n".join(["Done. What next:", *lines])


command = demo_command
