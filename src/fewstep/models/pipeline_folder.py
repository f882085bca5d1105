"""Stock pipeline folders (a `model_index.json`): read as teachers and students, written whole."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fewstep.core.cond import Cond
from fewstep.errors import FolderError, RangeError
from fewstep.models.card import CARD, Card, read_card
from fewstep.models.copies import copied_index, copy_part, part_files
from fewstep.models.dit import DiT
from fewstep.models.facts import (
    MARK,
    check_network_facts,
    check_same_shape,
    check_w_input,
    network_shape,
    with_checked_hash,
)
from fewstep.models.foreign import saved_again
from fewstep.models.hub import local
from fewstep.models.lora import ADAPTER, read_adapter
from fewstep.models.lora import WEIGHTS as ADAPTER_WEIGHTS
from fewstep.models.parts import INDEX, components, read_json
from fewstep.models.pipeline_model import PipelineModel
from fewstep.models.readme import README, model_card
from fewstep.models.stable_diffusion import StableDiffusion
from fewstep.models.stable_diffusion_xl import StableDiffusionXL
from fewstep.models.table import CONFIG, Table, read_table
from fewstep.models.text_unet import TextUNet
from fewstep.models.weights import file_sha256, find_weights, part_sha256

_WORDS = ("tokenizer.json", "vocab.json")  # one of them is in every tokenizer

FAMILIES: dict[str, type[PipelineModel]] = {
    family.family: family for family in (StableDiffusion, StableDiffusionXL, DiT)
}


def weights_sha256(folder: Path, part: str) -> str:
    """Return the hash of the network's weights in a model folder, in one file or several.

    Each file is read once per process. Raises FolderError where the weights are not there.
    """
    return part_sha256(folder / part)


def is_apart(folder: Path) -> bool:
    """Whether a folder holds an adapter alone, over a base that is elsewhere."""
    if not (folder / CARD).is_file():
        return False
    lora = read_card(folder).lora
    return lora is not None and not lora.merged


def base_of(folder: Path) -> Path:
    """Return the folder with all parts: the base of an adapter that is kept apart, or itself.

    Raises FolderError where the base is not there.
    """
    if not is_apart(folder):
        return folder
    lora = read_card(folder).lora
    assert lora is not None
    base = Path(os.path.normpath(folder / (lora.base or "")))
    if base == Path(os.path.normpath(folder)) or (base.is_dir() and is_apart(base)):
        raise FolderError(
            f"{folder / CARD}: lora.base must be the folder of a whole model, got {lora.base!r}. "
            "Write the place of the base into it."
        )
    if lora.base is None or not base.is_dir():
        raise FolderError(
            f"{folder} holds an adapter alone; its base, of the weights {lora.base_sha256[:16]}, "
            f"is not at {base}. Bring it there, or write its place into lora.base of "
            f"{folder / CARD}."
        )
    return base


def is_pipeline(folder: Path) -> bool:
    """Whether a folder is a stock pipeline's: it has an index, and no card of another family."""
    if not (folder / INDEX).is_file():
        return False
    if (folder / CARD).is_file():
        return read_card(folder).family in FAMILIES
    return read_json(folder / INDEX).get("_class_name") != "ClassConditionalPipeline"


def family_of(folder: Path) -> type[PipelineModel]:
    """Return the family of a pipeline folder. Raises FolderError where it is not understood."""
    index = read_json(folder / INDEX)
    name = index.get("_class_name")
    found = next((f for f in FAMILIES.values() if name in f.pipelines), None)
    if found is None:
        known = ", ".join(f.pipelines[0] for f in FAMILIES.values())
        raise FolderError(
            f"{folder / INDEX}: _class_name: {name!r} is not understood; fewstep reads the folders "
            f"of {known}, and of the image-to-image and inpainting ones."
        )
    there = components(index)
    for part, right in found.parts.items():
        # Tokenizers were named ...Fast in older folders; they are the same.
        if there.get(part, "").removesuffix("Fast") not in right:
            raise FolderError(
                f"{folder / INDEX}: {part}: {there.get(part)!r}; a {found.family} folder has "
                f"{right[0]!r}. Give the whole model, with all of its parts."
            )
    return found


def load_pipeline(
    folder: Path, device: str = "cpu", negative_prompt: str | None = None
) -> PipelineModel:
    """Return the network of a pipeline folder: one pass a call, on the folder's own clock.

    negative_prompt: for the unconditional pass of a teacher, in place of what its pipelines tell
    it. Raises FolderError: a part that is missing, pickled, damaged or not understood, or a
    scheduler that is not the one that the folder was saved with;
    RangeError: a negative prompt for a student, whose guidance is in its weights.
    """
    family, table, card = _described(folder, negative_prompt)
    network = family.read_network(folder)
    card = with_checked_hash(card, folder, part_sha256(folder / family.part))
    model = family(network.to(device).eval(), card, table, folder)
    if (folder / CARD).is_file():
        check_w_input(card, model.w_dim, folder / CARD)
    return model


def pipeline_card(folder: Path) -> Card:
    """Return the card of a pipeline folder, checked as `load_pipeline` does, without its weights.

    The card of a stock folder has the hash of its network's weights too. Raises FolderError as
    `load_pipeline` does.
    """
    family, _, card = _described(folder, None)
    if not card.weights_sha256:
        card = card.model_copy(update={"weights_sha256": part_sha256(folder / family.part)})
    return card


def _described(
    folder: Path, negative_prompt: str | None
) -> tuple[type[PipelineModel], Table, Card]:
    family = family_of(folder)
    table = read_table(folder)
    path = folder / family.part / "config.json"
    config = read_json(path)
    family.check_network(config, path)
    if negative_prompt is not None and not issubclass(family, TextUNet):
        raise RangeError(
            f"negative_prompt = {negative_prompt!r}; {folder} draws classes and takes no prompts."
        )
    for part in family.parts:
        _check_part(folder / part)
    if (folder / CARD).is_file():
        card = _own_card(folder, table, negative_prompt)
        check_network_facts(card, config, folder / CARD, path, table)
    else:
        card = _card(folder, family, config, table)
        if negative_prompt is not None:
            card = card.model_copy(update={"null_prompt": negative_prompt})
    return family, table, card


def _check_part(path: Path) -> None:
    """Raise FolderError unless a part that the family needs is there, without opening it."""
    if not path.name.startswith("tokenizer"):
        find_weights(path)
    elif not any((path / name).is_file() for name in _WORDS):
        raise FolderError(
            f"{path} is missing, or has none of {', '.join(_WORDS)}; copy the whole folder again."
        )


def load_apart(
    folder: Path, device: str = "cpu", negative_prompt: str | None = None
) -> PipelineModel:
    """Return the network of an adapter's base with the adapter over it, as `load_pipeline` does.

    Raises FolderError besides: the base is not where the card says, or has other weights.
    """
    card, base = read_card(folder), base_of(folder)
    assert card.lora is not None
    model = load_pipeline(base, device)
    found = weights_sha256(base, model.part)
    if found != card.lora.base_sha256:
        raise FolderError(
            f"{folder} holds an adapter of the weights {card.lora.base_sha256[:16]}; {base} has "
            f"{found[:16]}. Bring the base back that it was trained over, or write its place into "
            f"lora.base of {folder / CARD}."
        )
    table = read_table(folder)
    card = _own_card(folder, table, negative_prompt)
    assert card.lora is not None
    check_same_shape(card, model.card, folder / CARD)
    network = read_adapter(model.unet, card.lora, folder / ADAPTER)
    card = with_checked_hash(card, folder, file_sha256(folder / ADAPTER / ADAPTER_WEIGHTS))
    adapted = type(model)(network.eval(), card, table, base)
    check_w_input(card, adapted.w_dim, folder / CARD)
    return adapted


def _own_card(folder: Path, table: Table, negative_prompt: str | None) -> Card:
    """Return the card of a folder that fewstep wrote, once its scheduler is the card's."""
    card = read_card(folder)
    if (card.clock, card.prediction) != (table.name, table.prediction):
        raise FolderError(
            f"{folder / CONFIG} is of {table.name}, {table.prediction}; {folder / CARD} says "
            f"{card.clock}, {card.prediction}. Bring the scheduler back that it was saved with."
        )
    if negative_prompt is not None and negative_prompt != card.null_prompt:
        raise RangeError(
            f"negative_prompt = {negative_prompt!r}; {folder} was made with "
            f"{card.null_prompt!r}, which is in its weights. Give it when loading the teacher."
        )
    return card


def _card(folder: Path, family: type[PipelineModel], config: dict[str, Any], table: Table) -> Card:
    path = folder / family.part / "config.json"
    if config.get(MARK, "teacher") != "teacher":
        raise FolderError(saved_again(folder))
    if config.get("time_cond_proj_dim") is not None:
        raise FolderError(
            f"{path}: time_cond_proj_dim: {config['time_cond_proj_dim']}: this network was "
            f"distilled already, and without {CARD} nobody knows for what. Give the model that it "
            f"was distilled from; where fewstep made the folder, copy {CARD} back into it."
        )
    return Card(
        fewstep=version("fewstep"),
        family=family.family,
        name=folder.resolve().name or "model",
        stage="teacher",
        clock=table.name,
        shape=network_shape(config, path),
        prediction=table.prediction,
        **family.conditions(read_json(folder / INDEX), config),
    )


def encode_prompts(
    folder: Path | str, prompts: Sequence[str], *, device: str = "cpu", batch_size: int = 64
) -> Cond:
    """Return the condition batch of the prompts, by the encoders of a pipeline folder or hub id.

    A tensor (B, L, D) for Stable Diffusion, a dict of tensors for SDXL. Prompts longer than the
    encoder can read are cut, with a warning. Raises FolderError: no such folder, or a part that is
    missing, pickled or damaged; RangeError: no prompts, or a model that draws classes.
    """
    if isinstance(prompts, str) or not prompts:
        raise RangeError(f"prompts = {prompts!r}; give a list of at least one prompt.")
    folder = base_of(local(folder))
    family = family_of(folder)
    if not issubclass(family, TextUNet):
        raise RangeError(
            f"{folder} draws classes and takes no prompts; its condition is class ids."
        )
    return family.encode(folder, list(prompts), device=device, batch_size=batch_size)


def encoders_sha256(folder: Path | str, *, prompts: bool = True) -> str:
    """Return the hash of the parts that make latents and conditions: not of the network's.

    What a cache of latents and text embeddings depends on; without prompts, `vae/` alone. Raises
    FolderError where a part is missing.
    """
    digest = hashlib.sha256()
    folder, parts = base_of(Path(folder)), {"vae"}
    if prompts:
        family = family_of(folder)
        parts = set(family.parts) - {family.part}
    for part in sorted(parts):
        if not (folder / part).is_dir():
            raise FolderError(f"{folder / part} is missing; give a folder that has it.")
        for file, name in part_files(folder / part).items():
            digest.update(f"{part}/{name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def write_own(model: PipelineModel, partial: Path, card: Card) -> None:
    """Write what every folder of a pipeline's model has of its own: licence, scheduler, README."""
    for file in sorted(model.source.glob("LICEN[SC]E*")):
        shutil.copyfile(file, partial / file.name)
    model.table.scheduler().save_pretrained(partial / "scheduler")
    text = model_card(card, model.table, model.pipelines[0], model.source)
    (partial / README).write_text(text, encoding="utf-8")


def write_parts(model: PipelineModel, partial: Path, card: Card) -> dict[str, Any]:
    """Write all of a pipeline folder but the network and card; return its `model_index.json`.

    The parts that are not trained are copied byte for byte from `model.source`, and so are its
    licence files; the scheduler is DDIM, "trailing", ending at clean; README.md is written anew.
    """
    index = copied_index(model.source, read_json(model.source / INDEX), model.parts)
    for part in components(index):
        if part in (model.part, "scheduler"):
            continue
        copy_part(model.source, partial, part)
    write_own(model, partial, card)
    import diffusers

    index.update(
        _class_name=model.pipelines[0],
        _diffusers_version=diffusers.__version__,
        scheduler=["diffusers", "DDIMScheduler"],
        **{model.part: model.network_class},
    )
    return index
