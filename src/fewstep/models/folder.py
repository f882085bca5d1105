"""A model folder: stock diffusers parts plus `fewstep.json`. In and out are the same thing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from fewstep.atomic import atomic_folder
from fewstep.core.denoiser import Guided
from fewstep.errors import FolderError, ShapeError
from fewstep.models.card import CARD, Card, Parent, read_card
from fewstep.models.native import native_scheduler
from fewstep.models.unet_class import FAMILY, UNetModel

WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


def sha256(path: Path) -> str:
    """Return the hash of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def save_model(model: UNetModel, folder: Path | str) -> Card:
    """Write the model as a folder that appears whole or not at all; return its card.

    The folder holds `unet/`, `scheduler/`, `model_index.json` and `fewstep.json`; weights are
    safetensors. The card gains the hash of the weights. An older folder of that name is replaced.
    Raises FolderError where it cannot be written.
    """
    folder = Path(folder)
    with atomic_folder(folder) as partial:
        model.unet.save_pretrained(partial / "unet", safe_serialization=True)
        native_scheduler().save_pretrained(partial / "scheduler")
        card = model.card.model_copy(update={"weights_sha256": sha256(partial / WEIGHTS)})
        _write_json(partial / CARD, card.model_dump(mode="json"))
        _write_json(partial / "model_index.json", _model_index(card))
    model.card = card
    return card


def load_model(folder: Path | str, device: str = "cpu") -> UNetModel:
    """Return the network of a folder as it is: one pass a call, without guidance.

    Raises FolderError: not a model folder, another family or format, a part missing or cut short.
    """
    folder = Path(folder)
    card = read_card(folder)
    if card.family != FAMILY:
        raise FolderError(
            f"{folder / CARD}: family {card.family!r} is unknown; there is {FAMILY!r}."
        )
    for part in (Path("unet") / "config.json", WEIGHTS):
        if not (folder / part).is_file():
            raise FolderError(f"{folder / part} is missing; copy the whole folder again.")
    from diffusers import UNet2DConditionModel
    from safetensors import SafetensorError

    try:
        unet = UNet2DConditionModel.from_pretrained(
            folder / "unet", use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FolderError(
            f"{folder / 'unet'} cannot be read ({reason}); the file is damaged or cut short. "
            "Copy it again."
        ) from None
    return UNetModel(unet.to(device).eval(), card)


def load(folder: Path | str, device: str = "cpu") -> UNetModel | Guided:
    """Return the model of a folder, ready to be sampled at any w it allows.

    A student comes as its network (one pass); a teacher, and a student that is a pair like it,
    as `Guided` (two passes).
    Raises FolderError as `load_model` does.
    """
    model = load_model(folder, device)
    two = model.card.stage == "teacher" or model.card.pair
    return Guided(model, model.null_cond) if two else model


def card_of(model: UNetModel | Guided) -> Card:
    """Return the card of what `load` returned."""
    inner = model.denoiser if isinstance(model, Guided) else model
    if not isinstance(inner, UNetModel):
        raise ShapeError("this denoiser does not come from a model folder and has no card.")
    return inner.card


def lineage(card: Card) -> tuple[Parent, ...]:
    """Return the parents of a child of this model: the model itself, then its own parents."""
    return (Parent(name=card.name, sha256=card.weights_sha256), *card.parents)


def _model_index(card: Card) -> dict[str, Any]:
    import diffusers

    return {
        "_class_name": "ClassConditionalPipeline",
        "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "steps": card.steps,
        "w_range": card.w_range,
        "sampler": card.sampler,
    }


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
