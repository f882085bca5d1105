"""Writing a model folder: stock diffusers parts plus `fewstep.json`, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fewstep.atomic import atomic_folder, sha256
from fewstep.core.denoiser import Denoiser
from fewstep.errors import FolderError
from fewstep.files.copies import copied_index, copy_licences, copy_part, write_json
from fewstep.files.hub import check_push, push
from fewstep.files.parts import INDEX, components, read_json, without_paths
from fewstep.files.weights import check_finite_weights
from fewstep.folders.facts import MARK
from fewstep.folders.own import write_own_model
from fewstep.folders.readme import README, model_card
from fewstep.models.card import CARD, OWN, Card
from fewstep.models.lora import ADAPTER, has_adapter, merged, place_of, write_adapter
from fewstep.models.model import Model
from fewstep.models.own import as_model
from fewstep.models.scheduler import stock_scheduler
from fewstep.models.w_input import ANY_STEPS, LIVE, added_name, steps_projection

NETWORK_FILE = "diffusion_pytorch_model.safetensors"


def save_model(
    model: Denoiser | nn.Module,
    folder: Path | str,
    *,
    push_to_hub: bool = False,
    repo_id: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> Card:
    """Write the model as a folder that appears whole or not at all; return its card.

    The folder holds the network, `scheduler/`, `model_index.json` and `fewstep.json`, and for a
    model of a stock pipeline all else that it needs; weights are safetensors. The card gains the
    hash of the weights. A folder that fewstep wrote before is replaced; any other is not. Paths of
    this machine are left out of all settings.

    The adapter of a LoRA student is merged into its weights, in `model` too, which then answers as
    the folder does; one that is to be kept apart is saved alone, and the folder names its base.

    A module of your own is saved as its weights and a card, which says what its `traits` say;
    `load` needs a `factory` for it.

    push_to_hub: also upload the folder to the hub, as diffusers does, with its settings: repo_id is
    the repository, by default the folder's name; private, of a new one; token, by default that of
    `hf auth login`; commit_message.

    Raises FolderError: the folder holds files that fewstep did not write, or cannot be written or
    pushed; NonFiniteError where a weight is NaN or infinite; ShapeError where it is no module.
    """
    folder = Path(folder)
    repo_id = folder.name if repo_id is None else repo_id
    if push_to_hub:
        check_push(repo_id, token)
    card = _save(model, folder)
    if push_to_hub:
        push(folder, repo_id, private=private, token=token, commit_message=commit_message)
    return card


def _save(model: Denoiser | nn.Module, folder: Path) -> Card:
    model = as_model(model, folder.name)
    check_finite_weights(model.network, model.card.name)
    if model.card.family == OWN:
        return write_own_model(model, folder)
    if has_adapter(model.network) and model.card.lora is not None and not model.card.lora.merged:
        return _save_apart(model, folder)
    network, part = merged(model.network), model.family.part
    with atomic_folder(folder, CARD) as partial:
        # One file, whatever its size: its hash is the model's name.
        network.save_pretrained(partial / part, safe_serialization=True, max_shard_size="1TB")
        _finish_config(partial / part / "config.json", model.card)
        card = model.card.model_copy(
            update={"weights_sha256": sha256(partial / part / NETWORK_FILE)}
        )
        write = _write_native if model.family.native else _write_stock
        index = write(model, partial, card)
        write_json(partial / CARD, card.model_dump(mode="json"))
        write_json(partial / INDEX, index)
    model.card, model.network = card, network
    return card


def _finish_config(path: Path, card: Card) -> None:
    """Leave out where the network was loaded from, and mark a student.

    diffusers passes the mark on when it saves the model again, without the card.
    """
    config = without_paths(read_json(path))
    config.pop("_name_or_path", None)
    config.pop(MARK, None)
    if not card.is_teacher:
        config[MARK] = card.stage.kind
    write_json(path, dict(sorted(config.items())))


def _save_apart(model: Model, folder: Path) -> Card:
    assert model.card.lora is not None
    assert model.source is not None
    if folder.resolve() == model.source.resolve():
        raise FolderError(
            f"{folder} is the base of this adapter, which needs it. Give another folder."
        )
    lora = model.card.lora.model_copy(update={"base": place_of(model.source, folder)})
    with atomic_folder(folder, CARD) as partial:
        weights = write_adapter(model.network, lora, partial / ADAPTER)
        card = model.card.model_copy(update={"lora": lora, "weights_sha256": sha256(weights)})
        _write_own(model, model.source, partial, card)
        write_json(partial / CARD, card.model_dump(mode="json"))
    model.card = card
    return card


def _write_own(model: Model, source: Path, partial: Path, card: Card) -> None:
    """Write what every folder of a pipeline's model has of its own: licence, scheduler, README."""
    copy_licences(source, partial)
    stock_scheduler(model.clock, card.sampler).save_pretrained(partial / "scheduler")
    text = model_card(model, card, source)
    (partial / README).write_text(text, encoding="utf-8")


def _write_stock(model: Model, partial: Path, card: Card) -> dict[str, Any]:
    """Write all of a stock pipeline's folder but network and card; return its `model_index.json`.

    The parts that are not trained are copied byte for byte from `model.source`, and so are its
    licence files; the scheduler is that of the model's clock; README.md is written anew.
    """
    import diffusers

    source, family = model.source, model.family
    assert source is not None
    index = copied_index(source, read_json(source / INDEX), (family.part, *family.parts))
    for part in components(index):
        if part not in (family.part, "scheduler"):
            copy_part(source, partial, part)
    _write_own(model, source, partial, card)
    return {
        **index,
        "_class_name": family.pipelines[0],
        "_diffusers_version": diffusers.__version__,
        "scheduler": _class_of(stock_scheduler(model.clock, card.sampler)),
        family.part: _class_of(model.network),
    }


def _write_native(model: Model, partial: Path, card: Card) -> dict[str, Any]:
    """Write all of a folder of the native clock but network and card; return its index."""
    import diffusers

    stock_scheduler(model.clock, card.sampler).save_pretrained(partial / "scheduler")
    index: dict[str, Any] = {
        "_class_name": model.family.pipelines[0],
        "_diffusers_version": diffusers.__version__,
        model.family.part: _class_of(model.network),
        "scheduler": _class_of(stock_scheduler(model.clock, card.sampler)),
        "steps": card.steps,
        "w_range": card.w_range,
        "sampler": card.sampler,
    }
    for part, kinds in model.family.parts.items():
        assert model.source is not None
        copy_part(model.source, partial, part)
        index[part] = ["diffusers", kinds[0]]
    return index


def _class_of(network: Any) -> list[str]:
    """Return library and class of a network or scheduler, as `model_index.json` has them.

    A network with an input that fewstep added has a class that stock pipelines do not find: they
    would draw without the input.
    """
    name = type(network).__name__
    if steps_projection(network) is not None:
        return ["fewstep.models.w_input", name + ANY_STEPS]
    if added_name(network) is not None:
        return ["fewstep.models.w_input", name + LIVE]
    return ["diffusers", name]
