"""A network in pieces, one per process (FSDP): its blocks are gathered one at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from typing import Any

from accelerate import Accelerator
from torch import nn

from fewstep.core.denoiser import inside
from fewstep.distill.problem import Problem


def sharded_teacher(problem: Problem, accelerator: Accelerator) -> Problem:
    """Return the problem with a copy of its teacher that is sharded among the processes.

    The teacher that was given stays whole, in the memory of the CPU. A problem without a teacher
    that is a module, or that is no dataclass, is returned as it is.
    """
    teacher: Any = getattr(problem, "teacher", None)
    network = inside(teacher)
    if not isinstance(network, nn.Module) or not is_dataclass(problem):
        return problem
    pieces: Any = sharded(network, accelerator).requires_grad_(False)
    pieces.set_reshard_after_forward(True)  # else what is in no block would stay gathered
    guided = pieces if network is teacher else replace(teacher, denoiser=pieces)
    changed: Any = replace(problem, teacher=guided)
    return changed


def sharded(network: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Return a copy of a network that is sharded among the processes.

    The network itself stays whole, in the memory of the CPU.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Pieces are moved to the device one by one, so that it never holds the whole.
    copied = copy.deepcopy(network.cpu())
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    # The innermost first: a module leaves out what is sharded inside it already.
    for unit in reversed(list(units(copied))):
        fully_shard(unit, mesh=mesh)
    fully_shard(copied, mesh=mesh)
    return copied


def units(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that are gathered whole, the outer ones before those inside them.

    These are the blocks that a network of diffusers names in `_no_split_modules`, as accelerate
    takes them too. Of other networks they are the members of module lists.
    """
    for block in _blocks(network):
        yield block
        # DiT calls the embedder in its first block by itself, when the block is in pieces.
        embedder = getattr(getattr(block, "norm1", None), "emb", None)
        if embedder is not None:
            yield embedder


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    for module in network.modules():
        names = getattr(module, "_no_split_modules", None)
        if names:
            yield from (
                m for m in module.modules() if type(m).__name__ in names and _has_weights(m)
            )
            return
    for module in network.modules():
        if isinstance(module, nn.ModuleList):
            members = (m for m in module if not isinstance(m, nn.ModuleList))
            yield from filter(_has_weights, members)


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
