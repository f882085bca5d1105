"""A model folder: stock diffusers parts plus `fewstep.json`. In and out are the same thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fewstep.atomic import atomic_folder, sha256
from fewstep.core.denoiser import Guided
from fewstep.errors import FolderError, RangeError, ShapeError
from fewstep.models.card import CARD, OWN, Card, Parent, read_card
from fewstep.models.copies import copy_part, write_json
from fewstep.models.facts import MARK, check_network_facts, check_w_input, with_checked_hash
from fewstep.models.hub import local
from fewstep.models.latent_class import LatentClass
from fewstep.models.lora import ADAPTER, has_adapter, merged, place_of, write_adapter
from fewstep.models.native import native_scheduler
from fewstep.models.own import (
    Factory,
    OwnModel,
    load_own_model,
    own_or_known,
    write_own_model,
)
from fewstep.models.parts import read_json, without_paths
from fewstep.models.pipeline_folder import (
    FAMILIES,
    is_apart,
    is_pipeline,
    load_apart,
    load_pipeline,
    pipeline_card,
    write_own,
    write_parts,
)
from fewstep.models.pipeline_model import PipelineModel
from fewstep.models.text_unet import load_unet
from fewstep.models.unet_class import FAMILY, UNetModel
from fewstep.models.weights import check_finite_weights, find_weights, part_sha256

VAE = "vae"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def save_model(model: UNetModel | Guided | nn.Module, folder: Path | str) -> Card:
    """Write the model as a folder that appears whole or not at all; return its card.

    The folder holds `unet/`, `scheduler/`, `model_index.json` and `fewstep.json`, and for a
    text-to-image model all else that its stock pipelines need; weights are safetensors. The card
    gains the hash of the weights. A folder that fewstep wrote before is replaced; any other is not.
    Paths of this machine are left out of all settings.

    The adapter of a LoRA student is merged into its weights, in `model` too, which then answers as
    the folder does; one that is to be kept apart is saved alone, and the folder names its base.

    A module of your own is saved as its weights and a card, which says what its `traits` say;
    `load` needs a `factory` for it.

    Raises FolderError: the folder holds files that fewstep did not write, or cannot be written;
    NonFiniteError where a weight is NaN or infinite; ShapeError where it is no module.
    """
    folder = Path(folder)
    model = own_or_known(model.denoiser if isinstance(model, Guided) else model, folder.name)
    check_finite_weights(model.unet, model.card.name)
    if isinstance(model, OwnModel):
        return write_own_model(model, folder)
    if has_adapter(model.unet) and model.card.lora is not None and not model.card.lora.merged:
        assert isinstance(model, PipelineModel)
        return _save_apart(model, folder)
    network = merged(model.unet)
    with atomic_folder(folder, CARD) as partial:
        # One file, whatever its size: its hash is the model's name.
        network.save_pretrained(partial / model.part, safe_serialization=True, max_shard_size="1TB")
        _finish_config(partial / model.part / "config.json", model.card)
        card = model.card.model_copy(
            update={"weights_sha256": sha256(partial / model.part / WEIGHTS)}
        )
        if isinstance(model, PipelineModel):
            index = write_parts(model, partial, card)
        else:
            native_scheduler().save_pretrained(partial / "scheduler")
            index = _model_index(card)
            if model.source is not None:
                copy_part(model.source, partial, VAE)
                index[VAE] = ["diffusers", "AutoencoderKL"]
        write_json(partial / CARD, card.model_dump(mode="json"))
        write_json(partial / "model_index.json", index)
    model.card, model.unet = card, network
    return card


def _finish_config(path: Path, card: Card) -> None:
    """Leave out where the network was loaded from, and mark a student.

    diffusers passes the mark on when it saves the model again, without the card.
    """
    config = without_paths(read_json(path))
    config.pop("_name_or_path", None)
    config.pop(MARK, None)
    if card.stage != "teacher":
        config[MARK] = card.stage
    write_json(path, dict(sorted(config.items())))


def _save_apart(model: PipelineModel, folder: Path) -> Card:
    assert model.card.lora is not None
    if folder.resolve() == model.source.resolve():
        raise FolderError(
            f"{folder} is the base of this adapter, which needs it. Give another folder."
        )
    lora = model.card.lora.model_copy(update={"base": place_of(model.source, folder)})
    with atomic_folder(folder, CARD) as partial:
        weights = write_adapter(model.unet, lora, partial / ADAPTER)
        card = model.card.model_copy(update={"lora": lora, "weights_sha256": sha256(weights)})
        write_own(model, partial, card)
        write_json(partial / CARD, card.model_dump(mode="json"))
    model.card = card
    return card


def card_in(folder: Path | str) -> Card:
    """Return the card of a folder, without its weights; that of a stock pipeline is made.

    Raises FolderError: not a model folder, or one that `load_model` does not understand.
    """
    folder = local(folder)
    if is_pipeline(folder) and not (folder / CARD).is_file():
        return pipeline_card(folder)
    return read_card(folder)


def load_model(
    folder: Path | str,
    device: str = "cpu",
    *,
    negative_prompt: str | None = None,
    factory: Factory | None = None,
) -> UNetModel:
    """Return the network of a folder as it is: one pass per call, without guidance.

    folder: or the id of a hub's model, owner/name, which is fetched where it is not here.
    factory: of a module of your own; see `load`.

    Raises FolderError: not a model folder, another family or format, a part missing, pickled or
    cut short, weights that are not the card's, or not those of the network; NonFiniteError: a
    weight that is NaN or infinite; RangeError: a negative prompt where there are no prompts, or a
    student.
    """
    folder = local(folder)
    own = (folder / CARD).is_file() and read_card(folder).family == OWN
    if own:
        return load_own_model(folder, factory, device)
    if factory is not None:
        raise RangeError(
            f"factory is for a folder of a module of your own, got {folder}, which fewstep loads "
            "by itself. Leave factory out."
        )
    if is_apart(folder):
        return load_apart(folder, device, negative_prompt)
    if is_pipeline(folder):
        return load_pipeline(folder, device, negative_prompt)
    card = read_card(folder)
    if card.family not in (FAMILY, LatentClass.family):
        known = ", ".join(map(repr, (FAMILY, LatentClass.family, *FAMILIES)))
        raise FolderError(f"{folder / CARD}: family {card.family!r} is unknown; there are {known}.")
    if negative_prompt is not None:
        raise RangeError(
            f"negative_prompt = {negative_prompt!r}; {folder} draws classes and takes no prompts."
        )
    config = read_json(folder / "unet" / "config.json")
    check_network_facts(card, config, folder / CARD, folder / "unet" / "config.json")
    if card.family == LatentClass.family:
        find_weights(folder / VAE)
    unet = load_unet(folder)
    card = with_checked_hash(card, folder, part_sha256(folder / "unet"))
    unet.to(device).eval()
    model = UNetModel(unet, card) if card.family == FAMILY else LatentClass(unet, card, folder)
    check_w_input(card, model.w_dim, folder / CARD)
    return model


def load(
    folder: Path | str,
    device: str = "cpu",
    *,
    negative_prompt: str | None = None,
    factory: Factory | None = None,
) -> UNetModel | Guided:
    """Return the model of a folder, ready to be sampled at any w it allows.

    A student comes as its network (one pass); a teacher, and a student that is a pair like it,
    as `Guided` (two passes). A folder of a stock diffusers pipeline (Stable Diffusion 1, 2, XL)
    is a teacher, on the clock of its own scheduler.

    negative_prompt: of a text-to-image teacher, for its unconditional pass; by default what its
    pipelines tell that pass: the empty prompt, or zeros.
    factory: for a folder of a module of your own: called without arguments, it returns a module of
    the class that was saved, whose weights are then read. Wrap a conditional teacher of your own in
    `Guided` yourself.

    Raises FolderError, NonFiniteError and RangeError as `load_model` does.
    """
    model = load_model(folder, device, negative_prompt=negative_prompt, factory=factory)
    if isinstance(model, OwnModel):
        return model
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
