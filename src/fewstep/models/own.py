"""Networks that users bring: saved as safetensors and a card, loaded with the user's factory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.atomic import atomic_folder, sha256
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Traits, traits_of
from fewstep.errors import FolderError, RangeError, ShapeError
from fewstep.models.card import CARD, OWN, STRIDES, Card, read_card
from fewstep.models.copies import write_json
from fewstep.models.facts import with_checked_hash
from fewstep.models.parts import reading
from fewstep.models.unet_class import UNetModel
from fewstep.models.weights import check_finite_weights, check_names, file_sha256

WEIGHTS = "model.safetensors"
CLASS = "network"  # in the card's `training`: the class of the module

Factory: TypeAlias = Callable[[], nn.Module]


class OwnModel(UNetModel):
    """A denoiser that is a module of the user's, with a card of what it was made for.

    The module is called as it is: `v = module(z, phi, cond, w)`. It has `passes`, and may have
    `traits`; what the card says (shape, steps, sampler, range of w) is added to them.

    Attributes:
        unet: the module.
    """

    family: ClassVar[str] = OWN

    @property
    def passes(self) -> int:  # type: ignore[override]
        """Network evaluations that one call costs, as the module says."""
        return int(getattr(self.unet, "passes", 1))

    @property
    def traits(self) -> Traits:
        """The module's traits with the facts of the card."""
        card, tensors = self.card, _tensors(self.unet).values()
        tensor = next((t for t in tensors if t.is_floating_point()), None)
        own = traits_of(self.unet)
        return replace(
            own,
            shape=card.shape or own.shape,
            w_range=card.w_range or own.w_range,
            steps=own.steps if card.steps is None else (card.steps,),
            sampler=card.sampler or own.sampler,
            device=own.device or (None if tensor is None else tensor.device),
            dtype=own.dtype or (None if tensor is None else tensor.dtype),
        )

    @property
    def null_cond(self) -> Cond:
        """Raise ShapeError: only the user knows the null condition."""
        raise ShapeError(
            "a module of your own must be given its null condition, and none is known. Use "
            "fewstep.Guided(model, null_cond)."
        )

    @property
    def w_dim(self) -> int | None:
        """Return None: how w enters is the module's own affair."""
        return None

    def like(self, unet: Any, card: Card) -> OwnModel:
        """Return another model of this kind."""
        return OwnModel(unet, card)

    def with_w(self, w: tuple[float, float], w_dim: int) -> Any:
        """Return a copy of the module, which takes w as an argument already."""
        del w, w_dim
        return copy.deepcopy(self.unet)

    def takes_w(self, w: tuple[float, float]) -> bool:
        """Raise RangeError: adapters are for networks of diffusers."""
        del w
        raise RangeError(
            "lora must be left out for a module of your own: adapters are for networks of "
            "diffusers. Train the module itself."
        )

    def checkpoint_activations(self) -> None:
        """Raise RangeError: activation checkpointing is built into networks of diffusers."""
        raise RangeError(
            "activation checkpointing must be off for a module of your own. Call "
            "torch.utils.checkpoint inside the module instead."
        )

    def forward(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        """Return v (B, *D), as the module gives it."""
        v: Tensor = self.unet(z, phi, cond, w)
        return v


def own_or_known(model: object, name: str = "model") -> UNetModel:
    """Return the model; a plain module of the user's is wrapped with a card made of its traits.

    name: for the card. Raises ShapeError where it is no module.
    """
    if isinstance(model, UNetModel):
        return model
    if not isinstance(model, nn.Module):
        raise ShapeError(
            f"a model must be a torch.nn.Module to be trained or saved, got a "
            f"{type(model).__name__}, which has no network. Make it a module with "
            "forward(z, phi, cond, w)."
        )
    return OwnModel(model, _card(model, name))


def _card(module: nn.Module, name: str) -> Card:
    traits = traits_of(module)  # type: ignore[arg-type]
    steps = traits.steps or ()
    if len(steps) > 1:
        raise RangeError(
            f"traits.steps must name one number of steps to be saved, got {steps}. Save a model "
            "for each."
        )
    stage = "halve" if steps else "teacher" if traits.w_range is None else "match"
    known = {name: stride for stride, name in STRIDES.items()}
    return Card.model_validate(
        {
            "fewstep": version("fewstep"),
            "family": OWN,
            "name": name,
            "stage": stage,
            "clock": "own",
            "shape": traits.shape or (),
            "w_range": traits.w_range,
            "steps": steps[0] if steps else None,
            "sampler": traits.sampler if steps else None,
            "stride": known.get(traits.sampler or "", 1) if steps else 1,
            "direction": "encode" if steps and traits.sampler == "encode" else "decode",
        }
    )


def write_own_model(model: OwnModel, folder: Path) -> Card:
    """Write the weights and the card of a module of the user's; return the card."""
    tensors = _tensors(model.unet)
    with atomic_folder(folder, CARD) as partial:
        # Clones, since safetensors refuses tensors that share memory.
        save_file(
            {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()},
            partial / WEIGHTS,
            metadata={"format": "pt"},
        )
        training = {**model.card.training, CLASS: type(model.unet).__name__}
        card = model.card.model_copy(
            update={"weights_sha256": sha256(partial / WEIGHTS), "training": training}
        )
        write_json(partial / CARD, card.model_dump(mode="json"))
    model.card = card
    return card


def load_own_model(folder: Path, factory: Factory | None, device: str = "cpu") -> OwnModel:
    """Return the model of a folder that `write_own_model` made.

    factory: called without arguments, it returns a module of the class that was saved.

    Raises FolderError: no factory, weights that are not the module's or the card's, a damaged file;
    NonFiniteError: a weight that is NaN or infinite; RangeError: the factory gives no module.
    """
    card, path = read_card(folder), folder / WEIGHTS
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
    return OwnModel(module.to(device).eval(), card)


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
