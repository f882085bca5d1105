"""Modules of the user's own: saved as safetensors and a card, loaded with the user's factory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.atomic import atomic_folder, sha256
from fewstep.errors import FolderError, RangeError, ShapeError
from fewstep.files.copies import write_json
from fewstep.files.parts import reading
from fewstep.files.weights import check_finite_weights, check_names, file_sha256
from fewstep.folders.facts import with_checked_hash
from fewstep.models.card import CARD, Card, read_card
from fewstep.models.clocks.own import OWN_CLOCK
from fewstep.models.model import Model

MODULE_FILE = "model.safetensors"
CLASS = "network"  # in the card's `training`: the class of the module

Factory: TypeAlias = Callable[[], nn.Module]


def write_own_model(model: Model, folder: Path) -> Card:
    """Write the weights and the card of a module of the user's; return the card."""
    tensors = _tensors(model.network)
    with atomic_folder(folder, CARD) as partial:
        # Clones, since safetensors refuses tensors that share memory.
        save_file(
            {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()},
            partial / MODULE_FILE,
            metadata={"format": "pt"},
        )
        training = {**model.card.training, CLASS: type(model.network).__name__}
        card = model.card.model_copy(
            update={"weights_sha256": sha256(partial / MODULE_FILE), "training": training}
        )
        write_json(partial / CARD, card.model_dump(mode="json"))
    model.card = card
    return card


def load_own_model(folder: Path, factory: Factory | None, device: str = "cpu") -> Model:
    """Return the model of a folder that `write_own_model` made.

    factory: called without arguments, it returns a module of the class that was saved.

    Raises FolderError: no factory, weights that are not the module's or the card's, a damaged file;
    NonFiniteError: a weight that is NaN or infinite; RangeError: the factory gives no module.
    """
    card, path = read_card(folder), folder / MODULE_FILE
    name = str(card.training.get(CLASS, "Net"))
    if factory is None:
        raise FolderError(
            f"{folder} holds a module of your own, of the class {name}, and fewstep cannot build "
            "it by itself. Load it in Python, with a factory that builds the module without "
            f"arguments (the class or a function): fewstep.load(FOLDER, factory={name})."
        )
    if isinstance(factory, nn.Module) or not callable(factory):
        raise RangeError(
            f"factory must be callable without arguments, got a {type(factory).__name__}. Pass the "
            f"class {name}, or a function that returns a module of it."
        )
    if not path.is_file():
        raise FolderError(f"{path} is missing; copy the whole folder again.")
    with reading(path):
        found = load_file(path)
    card = with_checked_hash(card, folder, file_sha256(path))
    module = factory()
    if not isinstance(module, nn.Module):
        raise RangeError(
            f"factory must return a torch.nn.Module, got a {type(module).__name__}. Pass the class "
            f"{name}, or a function that returns one."
        )
    _check_same(module, found, path)
    module.load_state_dict(found)
    check_finite_weights(module, str(path))
    return Model(module.to(device).eval(), card, OWN_CLOCK)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ShapeError(
                f"the state of a module must hold tensors alone to be saved, got {name}, a "
                f"{type(value).__name__}. Register it as a buffer."
            )
    return state


def _check_same(module: nn.Module, found: dict[str, Tensor], path: Path) -> None:
    wanted = _tensors(module)
    check_names(path, missing=set(wanted) - set(found), unexpected=set(found) - set(wanted))
    for name, tensor in wanted.items():
        other = found[name]
        kinds = tensor.is_floating_point(), other.is_floating_point()
        if tensor.shape != other.shape or kinds[0] != kinds[1]:
            raise FolderError(
                f"{path}: {name} must be as in the module that the factory returns, "
                f"{list(tensor.shape)} {tensor.dtype}, got {list(other.shape)} {other.dtype}. Pass "
                "the factory of the module that was saved."
            )
