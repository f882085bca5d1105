"""LoRA students: low-rank adapters over a base that the teacher goes on using (decision 0019).

A student's network is a tree of its own over its parent's very tensors, with adapters and a w input
beside them. So the base is in memory once, and the teacher is the parent itself: it has no
adapters to switch off.
"""

from __future__ import annotations

import copy
import itertools
import os
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import nn

from fewstep.core.seed import derive
from fewstep.errors import FolderError, MissingError, RangeError, did_you_mean
from fewstep.files.parts import reading
from fewstep.models.card import Adapter
from fewstep.models.families.family import Family
from fewstep.models.steps_input import add_steps_input
from fewstep.models.w_input import (
    INPUTS,
    STEPS,
    W_PARAMETERS,
    add_w_input,
    features_of,
    steps_projection,
)

NAME = "default"  # peft's own, of a network's one adapter
PREFIX = "base_model.model."  # of every key in a file of peft's
ADAPTER = "adapter"  # part of a folder that is kept apart from its base
ADAPTER_FILE = "adapter_model.safetensors"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


class Lora(BaseModel):
    """How a student is adapted.

    Attributes:
        rank: rank of the update of a weight.
        alpha: scale of the update, which is multiplied by alpha / rank.
        targets: ends of the names of the layers (linear or convolutions) that are adapted.
        keep_apart: save the adapter alone, over a base that stays where it is; otherwise it is
            merged into the weights, and the folder is a stock one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rank: int = Field(16, ge=1, le=16384)
    alpha: float = Field(16.0, gt=0.0, le=1e6)
    targets: tuple[str, ...] = Field(ATTENTION, min_length=1, max_length=1000)
    keep_apart: bool = False


def has_adapter(network: nn.Module) -> bool:
    """Whether a network computes with an adapter of its own, that is, is not merged."""
    return bool(_layers(network))


def adapted(
    network: Any, family: Family, lora: Lora, *, w_dim: int | None, seed: int, counts: int = 0
) -> Any:
    """Return a network over the same tensors, with a fresh adapter that adds zero at first.

    Adapter and inputs alone can be trained; the shared tensors are frozen, in `network` too.
    A network that has an adapter gives the new one a copy of it to start from.

    Args:
        network: of a teacher or a student; it goes on answering as it did.
        family: of the network.
        lora: how.
        w_dim: features of the w input that is added where there is none; None adds none.
        seed: of the adapter's random half.
        counts: numbers of steps that are an input; 0 adds none.

    Raises:
        MissingError: peft is not installed.
        RangeError: a target that no layer is named after, or an adapter of another kind.
    """
    own = set(_own(network))
    shared = [p for name, p in network.named_parameters() if name not in own]
    memo = {id(t): t for t in itertools.chain(shared, network.buffers())}
    out = copy.deepcopy(network, memo)
    if w_dim is not None and features_of(out) is None:
        add_w_input(out, family, w_dim)
    if counts and steps_projection(out) is None:
        add_steps_input(out, family, counts)
    if has_adapter(out):
        _check_same(out, lora)
    else:
        _inject(out, lora, seed)
    out.requires_grad_(False)
    trained = dict(out.named_parameters())
    for name in _own(out):
        trained[name].requires_grad_(True)
    return out


def merged(network: Any) -> Any:
    """Return the plain network whose weights have the adapter in them; others stay shared.

    A network without an adapter is returned as it is. The answers are the same but for rounding.
    """
    layers = _layers(network)
    if not layers:
        return network
    memo = {id(t): t for t in itertools.chain(network.parameters(), network.buffers())}
    out = copy.deepcopy(network, memo)
    del out.peft_config
    for name, layer in _layers(out).items():
        plain = layer.get_base_layer()
        with torch.no_grad():
            weight = plain.weight + layer.get_delta_weight(NAME).to(plain.weight.dtype)
        plain.weight = nn.Parameter(weight, requires_grad=False)
        above, _, last = name.rpartition(".")
        setattr(out.get_submodule(above), last, plain)
    return out


def write_adapter(network: Any, adapter: Adapter, folder: Path) -> Path:
    """Write the adapter and the inputs as peft does; return the file of the weights."""
    folder.mkdir()
    state = network.state_dict()
    # As peft's own: without the adapter's name in it, which is the reader's to give.
    kept = {PREFIX + k.replace(f".{NAME}.", "."): state[k].contiguous() for k in _own(network)}
    config = copy.deepcopy(network.peft_config[NAME])
    config.target_modules = sorted(config.target_modules)
    config.base_model_name_or_path = adapter.base
    inputs = [name.split(".")[-2] for name in kept if name.removeprefix(PREFIX) in INPUTS]
    config.modules_to_save = inputs or None
    config.inference_mode = True
    config.save_pretrained(str(folder))
    save_file(kept, folder / ADAPTER_FILE, metadata={"format": "pt"})
    return folder / ADAPTER_FILE


def read_adapter(network: Any, family: Family, adapter: Adapter, folder: Path) -> Any:
    """Return the base network with the adapter of a folder over it, frozen whole.

    Raises FolderError: the file is missing, damaged, or of another network.
    """
    path = folder / ADAPTER_FILE
    if not path.is_file():
        raise FolderError(f"{path} is missing; copy the whole folder again.")
    with reading(path):
        found = load_file(path)
        w_weight = next((found[PREFIX + n] for n in W_PARAMETERS if PREFIX + n in found), None)
        lora = Lora(rank=adapter.rank, alpha=adapter.alpha, targets=adapter.targets)
        dim = None if w_weight is None else w_weight.shape[1]
        of_steps = found.get(f"{PREFIX}{STEPS}.weight")
        counts = 0 if of_steps is None else of_steps.shape[1]
        out = adapted(network, family, lora, w_dim=dim, seed=0, counts=counts)
        names = {PREFIX + name.replace(f".{NAME}.", "."): name for name in _own(out)}
        if names.keys() != found.keys():
            raise FolderError(
                f"{path} is not of this network: {_first_difference(set(names), set(found))}. Copy "
                "the whole folder again."
            )
        out.load_state_dict({names[key]: value for key, value in found.items()}, strict=False)
    return out.requires_grad_(False)


def place_of(base: Path, folder: Path) -> str:
    """Return the path of a base as seen from the folder of its adapter.

    A folder is made to be shared, and an absolute path would name this machine and its user.
    """
    return os.path.relpath(base.resolve(), folder.resolve())


def _inject(network: Any, lora: Lora, seed: int) -> None:
    peft = _peft()
    names = [name for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for target in lora.targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            ends = sorted({_end(name) for name in names})
            raise RangeError(
                f"lora.targets: no layer of this network is named {target!r}; there are "
                f"{', '.join(ends)}.{did_you_mean(target, ends)}"
            )
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), bias="none"
    )
    # peft draws from the global generator, on the CPU; the fork leaves the caller's alone.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "lora"))
        peft.inject_adapter_in_model(config, network, NAME)


def _check_same(network: Any, lora: Lora) -> None:
    config = network.peft_config[NAME]
    has = (config.r, config.lora_alpha, set(config.target_modules))
    if has != (lora.rank, lora.alpha, set(lora.targets)):
        raise RangeError(
            f"lora: rank {lora.rank}, alpha {lora.alpha:g}, targets {', '.join(lora.targets)}; the "
            f"parent has an adapter of its own, kept apart, of rank {has[0]}, alpha {has[1]:g}, "
            f"targets {', '.join(sorted(has[2]))}, and its student goes on with it. Give the same, "
            "or save the parent merged."
        )


def _own(network: Any) -> list[str]:
    """Return the names of the parameters that a student does not share with its base."""
    marks = (".lora_A.", ".lora_B.", *INPUTS)
    return [n for n, _ in network.named_parameters() if any(mark in n for mark in marks)]


def _layers(network: nn.Module) -> dict[str, Any]:
    return {name: m for name, m in network.named_modules() if hasattr(m, "lora_A")}


def _end(name: str) -> str:
    """Return the part of a layer's name that tells what it is: to_q, to_out.0."""
    words = name.split(".")
    return ".".join(words[-2:]) if words[-1].isdigit() and len(words) > 1 else words[-1]


def _first_difference(wanted: set[str], found: set[str]) -> str:
    missing, more = sorted(wanted - found), sorted(found - wanted)
    return f"it lacks {missing[0]}" if missing else f"it has {more[0]}"


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise MissingError(
            "LoRA needs peft, which is not installed. In the clone of fewstep, run: "
            'pip install -e ".[lora]"'
        ) from None
    return peft
