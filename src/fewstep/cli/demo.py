"""`fewstep demo`: the whole method on the built-in digits, ending in a report."""

from __future__ import annotations

from pathlib import Path

from fewstep.cli.options import Device, Out, Set, load_run_recipe, say


def demo_command(out: Out = None, set_: Set = None, device: Device = None) -> None:
    """Train a teacher, stage one and students, and write report.html; 24 minutes on one core.

    The same command resumes where it stopped.
    """
    checked = load_run_recipe("digits", set_)
    from fewstep.core.device import choose_device
    from fewstep.recipes.study import run_study

    report = run_study(checked, out or Path("runs") / "demo", choose_device(device), say)
    say(f"report: {report}")


command = demo_command
