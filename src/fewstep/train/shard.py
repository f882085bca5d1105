"""A student in pieces, one per process (FSDP): its blocks are gathered one at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from accelerate import Accelerator
from torch import nn


def sharded(student: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Return a copy of the student that is sharded among the processes.

    The student itself stays whole, in the memory of the CPU.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Pieces are moved to the device one by one, so that it never holds the whole.
    copied = copy.deepcopy(student.cpu())
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    # The innermost first: a module leaves out what is sharded inside it already.
    for unit in reversed(list(units(copied))):
        fully_shard(unit, mesh=mesh)
    fully_shard(copied, mesh=mesh)
    return copied


def units(student: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that are gathered whole, the outer ones before those inside them.

    These are the blocks that a network of diffusers names in `_no_split_modules`, as accelerate
    takes them too. Of other networks they are the members of module lists.
    """
    for module in student.modules():
        names = getattr(module, "_no_split_modules", None)
        if names:
            yield from (
                m for m in module.modules() if type(m).__name__ in names and _has_weights(m)
            )
            return
    for module in student.modules():
        if isinstance(module, nn.ModuleList):
            members = (m for m in module if not isinstance(m, nn.ModuleList))
            yield from filter(_has_weights, members)


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
