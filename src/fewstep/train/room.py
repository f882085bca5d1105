"""How much memory training may use on a device."""

from __future__ import annotations

import torch

from fewstep.resident import free_memory, resident_now


def memory_limit(device: torch.device) -> int:
    """Return the bytes that a process may hold on a device, those that it holds now included.

    On CUDA that is the GPU's memory; on the CPU what the process holds and what it can still take.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return resident_now() + free_memory()
