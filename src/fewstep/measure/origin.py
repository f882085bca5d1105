"""When and with what figures are measured."""

from __future__ import annotations

import datetime
import platform
from typing import Any

import diffusers
import torch

import fewstep


def device_name(device: str) -> str:
    """Return what figures of speed were taken on."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


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
