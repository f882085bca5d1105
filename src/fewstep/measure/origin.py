"""When and with what figures are measured."""

from __future__ import annotations

import datetime
import platform
from typing import Any

import diffusers
import torch

import fewstep
from fewstep.train import rank_and_count


def device_name(device: str) -> str:
    """Return what figures of speed were taken on."""
    name = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    _, count = rank_and_count()
    return name if count == 1 else f"{name}, {count} processes"


def origin(device: str) -> dict[str, Any]:
    """Return the fields of a record that tell when and with what a cell was measured."""
    now = datetime.datetime.now(datetime.timezone.utc)
    versions = {
        "fewstep": fewstep.__version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
    }
    created = now.isoformat(timespec="seconds")
    return {"created": created, "versions": versions, "device": device_name(device)}
