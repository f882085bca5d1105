"""Reading a model folder: stock diffusers parts and, where fewstep made it, a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from fewstep.core.denoiser import Guided
from fewstep.core.finite import check_finite
from fewstep.errors import FolderError, RangeError
from fewstep.files.foreign import saved_again
from fewstep.files.hub import local
from fewstep.files.parts import INDEX, components, read_json, reading
from fewstep.files.weights import file_sha256, find_weights, load_part, part_sha256
from fewstep.folders.base import base_of, is_apart
from fewstep.folders.facts import (
    MARK,
    check_network_facts,
    check_same_shape,
    check_steps_input,
    check_w_input,
    with_checked_hash,
)
from fewstep.folders.own import Factory, load_own_model
from fewstep.models.card import CARD, OWN, Card, read_card
from fewstep.models.clocks.clock import Clock
from fewstep.models.clocks.native import NATIVE_CLOCK
from fewstep.models.families import FAMILIES, Family, family_named, stock_family
from fewstep.models.lora import ADAPTER, ADAPTER_FILE, read_adapter
from fewstep.models.model import Model
from fewstep.models.scheduler import CONFIG, read_clock
from fewstep.models.steps_input import restore_steps_input
from fewstep.models.w_input import (
    ADDED,
    ADDED_AFTER,
    ANY_STEPS,
    LIVE,
    STEPS,
    restore_w_input,
    steps_projection,
)
from fewstep.version import __version__

_WORDS = ("tokenizer.json", "vocab.json", "spiece.model")  # one of them is in every tokenizer


def card_in(folder: Path | str) -> Card:
    """Return the card of a folder, without its weights; that of a stock pipeline is made.

    The card of a stock folder has the hash of its network's weights too.

    Raises FolderError: not a model folder, or one that `load_model` does not understand.
    """
    folder = local(folder)
    if (folder / CARD).is_file() or not is_pipeline(folder):
        return read_card(folder)
    family, _, card = _described(folder, None)
    return card.model_copy(update={"weights_sha256": part_sha256(folder / family.part)})


def load_model(
    folder: Path | str,
    device: str = "cpu",
    *,
    negative_prompt: str | None = None,
    factory: Factory | None = None,
) -> Model:
    """Return the network of a folder as it is: one pass per call, without guidance.

    folder: or the id of a hub's model, owner/name, which is fetched where it is not here.
    negative_prompt, factory: as in `load`.

    Raises FolderError: not a model folder, another family or format, a part missing, pickled or
    cut short, a scheduler or weights that are not the card's, or not those of the network;
    NonFiniteError: a weight that is NaN or infinite; RangeError: a negative prompt where there are
    no prompts, or a student, whose guidance is in its weights.
    """
    folder = local(folder)
    if (folder / CARD).is_file() and read_card(folder).family == OWN:
        return load_own_model(folder, factory, device)
    if factory is not None:
        raise RangeError(
            f"factory is for a folder of a module of your own, got {folder}, which fewstep loads "
            "by itself. Leave factory out."
        )
    if is_apart(folder):
        return _load_apart(folder, device, negative_prompt)
    return _load_whole(folder, device, negative_prompt)


def load(
    folder: Path | str,
    device: str = "cpu",
    *,
    negative_prompt: str | None = None,
    factory: Factory | None = None,
) -> Model | Guided:
    """Return the model of a folder, ready to be sampled at any w it allows.

    A student comes as its network (one pass); a teacher, and a student that is a pair like it,
    as `Guided` (two passes). A folder of a stock diffusers pipeline is a teacher, on the
    clock of its own scheduler, unless its network was distilled already (Flux dev).

    negative_prompt: of a text-to-image teacher, for its unconditional pass; by default what its
    pipelines tell that pass: the empty prompt, or zeros.
    factory: for a folder of a module of your own: called without arguments, it returns a module of
    the class that was saved, whose weights are then read. Wrap a conditional teacher of your own in
    `Guided` yourself.

    Raises FolderError, NonFiniteError and RangeError as `load_model` does.
    """
    model = load_model(folder, device, negative_prompt=negative_prompt, factory=factory)
    two = model.card.is_teacher or model.card.pair
    if not two or model.card.family == OWN:
        return model
    return Guided(model, model.null_cond, rescale=model.family.rescale)


def is_pipeline(folder: Path) -> bool:
    """Whether a folder is a stock pipeline's: it has an index, and no card of another family."""
    if not (folder / INDEX).is_file():
        return False
    if (folder / CARD).is_file():
        family = FAMILIES.get(read_card(folder).family)
        return family is not None and not family.native
    return read_json(folder / INDEX).get("_class_name") != "ClassConditionalPipeline"


def family_of(folder: Path) -> Family:
    """Return the family of a folder: its card's, or that of its stock pipeline.

    Raises FolderError where it is not understood, or a part that it needs is not in its index.
    """
    if not is_pipeline(folder):
        return family_named(read_card(folder).family, folder / CARD)
    index, found = read_json(folder / INDEX), stock_family(folder)
    if found is None:
        name = str(index.get("_class_name"))
        why = next((f.refused[name] for f in FAMILIES.values() if name in f.refused), None)
        if why is not None:
            raise FolderError(f"{folder / INDEX}: _class_name: {name!r} is not read: {why}")
        stock = (f.pipelines[0] for f in FAMILIES.values() if f.pipelines and not f.native)
        known = ", ".join(dict.fromkeys(stock))
        raise FolderError(
            f"{folder / INDEX}: _class_name: {name!r} is not understood; fewstep reads the folders "
            f"of {known}, and of the image-to-image and inpainting ones."
        )
    there = components(index)
    networks = tuple(name + end for end in ("", LIVE, ANY_STEPS) for name in found.networks)
    for part, right in {found.part: networks, **found.parts_in(folder)}.items():
        # Tokenizers were named ...Fast in older folders; they are the same.
        if there.get(part, "").removesuffix("Fast") not in right:
            raise FolderError(
                f"{folder / INDEX}: {part}: {there.get(part)!r}; a {found.name} folder has "
                f"{right[0]!r}. Give the whole model, with all of its parts."
            )
    return found


def _load_whole(folder: Path, device: str, negative_prompt: str | None) -> Model:
    family, clock, card = _described(folder, negative_prompt)
    network = _network(folder, family)
    card = with_checked_hash(card, folder, part_sha256(folder / family.part))
    source = folder if family.parts else None
    model = Model(network.to(device).eval(), card, clock, source)
    if (folder / CARD).is_file():
        check_w_input(card, model.takes_w, folder / CARD)
        check_steps_input(card, steps_projection(model.network), folder / CARD)
    return model


def _load_apart(folder: Path, device: str, negative_prompt: str | None) -> Model:
    """Return the network of an adapter's base with the adapter over it.

    Raises FolderError where the base is not where the card says, or has other weights.
    """
    lora, base = read_card(folder).lora, base_of(folder)
    assert lora is not None
    model = _load_whole(base, device, None)
    found = part_sha256(base / model.family.part)
    if found != lora.base_sha256:
        raise FolderError(
            f"{folder} holds an adapter of the weights {lora.base_sha256[:16]}; {base} has "
            f"{found[:16]}. Bring the base back that it was trained over, or write its place into "
            f"lora.base of {folder / CARD}."
        )
    clock = read_clock(folder, base)
    card = _own_card(folder, clock, negative_prompt)
    check_same_shape(card, model.card, folder / CARD)
    network = read_adapter(model.network, model.family, lora, folder / ADAPTER)
    card = with_checked_hash(card, folder, file_sha256(folder / ADAPTER / ADAPTER_FILE))
    adapted = Model(network.eval(), card, clock, base)
    check_w_input(card, adapted.takes_w, folder / CARD)
    check_steps_input(card, steps_projection(network), folder / CARD)
    return adapted


def _described(folder: Path, negative_prompt: str | None) -> tuple[Family, Clock, Card]:
    """Return all of a folder but its network, once it is sure that the parts fit together."""
    family = family_of(folder)
    clock: Clock = NATIVE_CLOCK if family.native else read_clock(folder)
    path = folder / family.part / "config.json"
    config = read_json(path)
    family.check_config(config, path)
    if negative_prompt is not None and not family.takes_prompts:
        raise RangeError(
            f"negative_prompt = {negative_prompt!r}; {folder} draws classes and takes no prompts."
        )
    for part in (family.part, *family.parts_in(folder)):
        _check_part(folder / part)
    if (folder / CARD).is_file():
        card = _own_card(folder, clock, negative_prompt)
        check_network_facts(card, family, clock, config, folder / CARD, path)
    else:
        card = _card(folder, family, clock, config)
        if negative_prompt is not None and not card.is_teacher:
            raise RangeError(
                f"negative_prompt must be left out for {folder}, whose guidance is in its weights, "
                f"got {negative_prompt!r}."
            )
        if negative_prompt is not None:
            card = card.model_copy(update={"null_prompt": negative_prompt})
    return family, clock, card


def _check_part(path: Path) -> None:
    """Raise FolderError unless a part that the family needs is there, without opening it."""
    if not path.name.startswith("tokenizer"):
        find_weights(path)
    elif not any((path / name).is_file() for name in _WORDS):
        raise FolderError(
            f"{path} is missing, or has none of {', '.join(_WORDS)}; copy the whole folder again."
        )


def _network(folder: Path, family: Family) -> Any:
    """Return the network of a folder, in float32, with the inputs that fewstep added to it."""
    import diffusers

    kind, path = getattr(diffusers, family.networks[0]), folder / family.part
    names = [STEPS] if family.slot is not None else [ADDED, ADDED_AFTER, STEPS]
    network = load_part(kind, path, extra=[f"{name}.weight" for name in names])
    with reading(path):
        for name in names:
            weight = _saved(path, f"{name}.weight")
            if weight is None:
                continue
            check_finite(weight, f"{path}: {name}.weight")
            if name == STEPS:
                restore_steps_input(network, family, weight)
            else:
                restore_w_input(network, family, name, weight)
    return network


def _saved(path: Path, name: str) -> Tensor | None:
    for file in find_weights(path).files:
        with safe_open(file, framework="pt") as opened:
            if name in opened.keys():  # noqa: SIM118
                weight: Tensor = opened.get_tensor(name)
                return weight
    return None


def _own_card(folder: Path, clock: Clock, negative_prompt: str | None) -> Card:
    """Return the card of a folder that fewstep wrote, once its scheduler is the card's."""
    card = read_card(folder)
    if (card.clock, card.prediction) != (clock.name, clock.prediction):
        raise FolderError(
            f"{folder / CONFIG} is of {clock.name}, {clock.prediction}; {folder / CARD} says "
            f"{card.clock}, {card.prediction}. Bring the scheduler back that it was saved with."
        )
    if negative_prompt is not None and negative_prompt != card.null_prompt:
        raise RangeError(
            f"negative_prompt = {negative_prompt!r}; {folder} was made with "
            f"{card.null_prompt!r}, which is in its weights. Give it when loading the teacher."
        )
    return card


def _card(folder: Path, family: Family, clock: Clock, config: dict[str, Any]) -> Card:
    """Return the card of a stock pipeline folder, which has none."""
    path = folder / family.part / "config.json"
    if config.get(MARK, "teacher") != "teacher":
        raise FolderError(saved_again(folder))
    if config.get("time_cond_proj_dim") is not None:
        raise FolderError(
            f"{path}: time_cond_proj_dim: {config['time_cond_proj_dim']}: this network was "
            f"distilled already, and without {CARD} nobody knows for what. Give the model that it "
            f"was distilled from; where fewstep made the folder, copy {CARD} back into it."
        )
    return Card.model_validate(
        {
            "fewstep": __version__,
            "family": family.name,
            "name": folder.resolve().name or "model",
            "clock": clock.name,
            "shape": family.shape(config, path),
            "prediction": clock.prediction,
            **family.conditions(read_json(folder / INDEX), config),
        }
    )
