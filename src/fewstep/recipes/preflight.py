"""Checks of a run before its first update: data, models, clocks, batches and memory must fit."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fewstep.core.denoiser import Traits
from fewstep.data import Buckets, Dataset, Prompts
from fewstep.distill.plan import KINDS, STAGE_ONE, TEACHER, Stage
from fewstep.errors import (
    DataError,
    FewstepError,
    FewstepWarning,
    FolderError,
    MissingError,
    RangeError,
    RecipeError,
)
from fewstep.files.hub import local
from fewstep.files.parts import is_count, read_json, vae_factor
from fewstep.folders import card_in, is_pipeline
from fewstep.models import Card, build_unet
from fewstep.models.scheduler import read_clock
from fewstep.recipes.buckets import check_buckets, check_fresh_buckets
from fewstep.recipes.config import Recipe
from fewstep.recipes.depends import updates_of
from fewstep.recipes.memory import COPIES, check_room
from fewstep.recipes.teachers import check_kind, name_of
from fewstep.recipes.workspace import Workspace
from fewstep.train import check_tracking, check_trainable, processes

Found = dict[str, tuple[Path, Card]]


def found_models(workspace: Workspace, teachers: Sequence[Path]) -> Found:
    """Return the teacher and the model of stage one that a run starts from, by their names.

    Raises FolderError or RecipeError for a folder that is no teacher, or does not fit the recipe.
    """
    found = {
        name: (workspace.folder(name), card_in(workspace.folder(name)))
        for name in (TEACHER, STAGE_ONE)
        if workspace.is_done(name)
    }
    for folder in teachers:
        card = card_in(folder)
        check_kind(workspace.recipe, card, folder)
        found.setdefault(name_of(card, folder), (folder, card))
    return found


def check_stages(
    workspace: Workspace,
    stages: Sequence[Stage],
    found: Found,
    *,
    parents: Collection[str] | None = None,
) -> None:
    """Raise an error where one of the stages could not be trained after those before it.

    parents: names of the models that are there before the first stage; None does not check that
        every parent is there.
    """
    recipe = workspace.recipe
    known = {name: card for name, (_, card) in found.items()}
    made: dict[str, Traits] = {}
    for stage in recipe.distill.plan():
        if parents is not None and stage in stages:
            _check_parent(workspace, stage, {*parents, *made})
        _check_pair(recipe, stage, known.get(stage.parent))
        if stage in stages:
            _check_range(recipe, stage, known.get(stage.parent))
        parent, teacher = (
            made.get(name) or _traits(recipe, found, name) for name in (stage.parent, stage.teacher)
        )
        try:
            made[stage.name] = stage.traits_after(parent, recipe.distill.w, teacher)
        except FewstepError as error:
            raise RecipeError(f"stage {stage.name!r}: {error}") from None
    if recipe.distill.lora is not None and importlib.util.find_spec("peft") is None:
        raise MissingError(
            "distill.lora needs the package peft. In the clone of fewstep, run: "
            'pip install -e ".[lora]"'
        )


def _check_pair(recipe: Recipe, stage: Stage, parent: Card | None) -> None:
    before = next((s for s in recipe.distill.plan() if s.name == stage.parent), None)
    pair = before.pair if before is not None else parent is not None and parent.pair
    if stage.parent != TEACHER and stage.pair != pair:
        raise RecipeError(
            f"{stage.name} (pair: {stage.pair}) cannot start from {stage.parent} (pair: {pair}); a "
            "pair starts from the teacher or a pair."
        )


def _check_parent(workspace: Workspace, stage: Stage, there: Collection[str]) -> None:
    for name in (stage.parent, stage.teacher):
        if name not in there and not workspace.is_done(name):
            if name == TEACHER == stage.parent and not stage.pair and STAGE_ONE in there:
                places = [
                    k
                    for k, s in enumerate(workspace.plan)
                    if s.parent == TEACHER and not s.pair and s.name != STAGE_ONE
                ]
                changes = " ".join(f"--set distill.stages.{k}.parent={STAGE_ONE}" for k in places)
                raise FolderError(
                    f"{stage.name} starts from a guided teacher, and a model of stage one was "
                    f"given. Add its teacher with --teacher, or start from that model: {changes}"
                )
            raise FolderError(no_parent(workspace.out, stage, name))
    for name in dict.fromkeys((stage.parent, stage.teacher)):
        _check_whole(workspace, name)


def no_parent(out: Path, stage: Stage, name: str) -> str:
    """Return the message for a stage whose parent, or teacher, is not there: the model `name`."""
    return (
        f"{out / name} is not made yet, and {stage.name} starts from it. Run `fewstep "
        "train` first, or give --teacher."
    )


def _check_whole(workspace: Workspace, name: str) -> None:
    """Raise FolderError where a model has fewer updates than the recipe now asks for."""
    if not workspace.is_done(name) or not workspace.is_trained_here(name):
        return
    folder, wanted = workspace.folder(name), updates_of(workspace.recipe, name)
    done = card_in(folder).training.get("updates")
    if isinstance(done, int) and wanted is not None and done < wanted and name == TEACHER:
        raise FolderError(
            f"{folder} must have the {wanted} updates of the recipe, and it has {done}. Run "
            "`fewstep train` with the same recipe to train it on."
        )


def _traits(recipe: Recipe, found: Found, name: str) -> Traits:
    """Return the traits of a model that a run starts from, as far as its folder tells them."""
    folder, card = found.get(name) or found.get(TEACHER) or found.get(STAGE_ONE) or (None, None)
    own = recipe.latents.folder if recipe.latents is not None else None
    if folder is None and own is not None and is_pipeline(local(own)):
        folder = local(own)
        # A teacher that is trained here starts from this network where the conditions agree.
        takes = "class" if card_in(folder).num_classes else "prompt"
        folder = folder if recipe.latents and recipe.latents.cond == takes else None
    traits = Traits(w_range=recipe.distill.w if name == STAGE_ONE else None)
    if folder is not None and is_pipeline(folder):
        traits = read_clock(folder).traits(None)
    if card is not None and name in found:
        traits = replace(traits, w_range=card.w_range)
    return traits


def _check_range(recipe: Recipe, stage: Stage, parent: Card | None) -> None:
    known, w = None if parent is None else parent.w_range, recipe.distill.w
    if known is not None and not stage.pair and not known[0] <= w[0] <= w[1] <= known[1]:
        raise RecipeError(
            f"distill.w must lie in [{known[0]:g}, {known[1]:g}], the range of {stage.parent}, got "
            f"[{w[0]:g}, {w[1]:g}]. Use --set distill.w with values in that range."
        )


def check_data(recipe: Recipe, stages: Sequence[Stage], images: Dataset | Prompts) -> None:
    """Raise RecipeError or DataError where the stages cannot be trained on these data."""
    latents = recipe.latents
    if isinstance(images, Prompts):
        if latents is not None and latents.flip:
            raise RecipeError("latents.flip must be false for prompts, which have no mirror image.")
        if latents is not None and latents.cond == "class":
            raise RecipeError("latents.cond must be prompt for a file of prompts, got class.")
        if recipe.data.buckets:
            raise RecipeError(
                "data.buckets must be left out for prompts alone, which have no size."
            )
        for stage in stages:
            if KINDS[stage.kind].needs_images(stage):
                raise RecipeError(prompts_alone(recipe, stage))


def prompts_alone(recipe: Recipe, stage: Stage) -> str:
    """Return the message for a stage of noised images where there are prompts alone."""
    return (
        f"{recipe.data.name} has prompts alone, and {stage.name} is trained on noised images; set "
        "distill.states=trajectory to train on the states of the teacher's own trajectories."
    )


def check_teacher(recipe: Recipe, images: Dataset | Prompts) -> None:
    """Raise an error where no teacher can be trained on these data."""
    if isinstance(images, Prompts):
        raise DataError(
            f"a teacher is trained on images, and {recipe.data.name} has prompts alone. Give a "
            "finished one, with --teacher."
        )
    if isinstance(images, Buckets):
        check_fresh_buckets(images, recipe)
    if recipe.latents is None:
        check_network("teacher", recipe, images.shape, images.num_classes)


def check_network(name: str, recipe: Recipe, shape: tuple[int, ...], classes: int) -> None:
    """Raise an error where the recipe's network does not fit the data, or not into memory."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        unet = build_unet(recipe.network, shape, classes)
    config = recipe.train_config(None)
    size = sum(p.numel() * p.element_size() for p in unet.parameters())
    held = COPIES[config.optimizer] * size
    if not config.shard:
        check_room(name, held, config, processes().device)


def check_fit(recipe: Recipe, found: Found, images: Dataset | Prompts) -> None:
    """Raise RecipeError where data and a given model do not fit: size, channels, classes."""
    for folder, card in found.values():
        if isinstance(images, Prompts):
            return
        shape = images.shape if recipe.latents is None else _latent_shape(folder, images.shape)
        if shape is not None and tuple(shape) != tuple(card.shape):
            raise RecipeError(_misfit(folder, card, images.shape, shape))
        if card.num_classes:
            _check_classes(folder, card, images)
        if isinstance(images, Buckets):
            check_buckets(images, folder, card, latents=recipe.latents is not None)


def _misfit(folder: Path, card: Card, pixels: tuple[int, ...], shape: tuple[int, ...]) -> str:
    given, wanted = ("x".join(map(str, s)) for s in (shape, card.shape))
    sides = card.shape[-1] * pixels[-1] // max(1, shape[-1])
    return (
        f"the data must have the shape of {folder}, {wanted}, and images of "
        f"{pixels[-1]}x{pixels[-2]} pixels have {given}. Set data.size={sides}"
        f"{'' if shape[0] == card.shape[0] else f' and data.channels={card.shape[0]}'}, or give "
        "another teacher."
    )


def _latent_shape(folder: Path, pixels: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of an image's latents, from the autoencoder's settings; None if unknown."""
    try:
        config = read_json(folder / "vae" / "config.json")
        factor, channels = vae_factor(folder), config.get("latent_channels", config.get("z_dim"))
    except FolderError:
        return None  # the loader says what is wrong with the folder
    return (int(channels or 0), *(n // factor for n in pixels[1:])) if is_count(channels) else None


def _check_classes(folder: Path, card: Card, images: Dataset) -> None:
    if images.num_classes > card.num_classes:
        raise RecipeError(
            f"the data must have at most the {card.num_classes} classes of {folder}, and they have "
            f"{images.num_classes}. Leave classes out, or give another teacher."
        )
    ours, theirs = tuple(images.class_names), tuple(card.class_names)
    if not ours or not theirs or ours == theirs[: len(ours)]:
        return
    differ = [k for k, name in enumerate(ours) if theirs[k : k + 1] != (name,)]
    moved = [k for k in differ if ours[k] in theirs]
    wrong = (moved or differ)[0]
    theirs_there = theirs[wrong] if wrong < len(theirs) else "unnamed"
    text = f"class {wrong} is {ours[wrong]!r} in the data and {theirs_there!r} in {folder}"
    if moved:
        raise RecipeError(
            f"the classes of the data must be those of the teacher in the same order, and {text}. "
            "Use the data that the teacher was trained on, or another teacher."
        )
    warnings.warn(
        f"{text}; fewstep takes them for the same class. Check that the order is the same.",
        FewstepWarning,
        stacklevel=2,
    )


def check_trainings(recipe: Recipe, names: Collection[str], device: str | None) -> None:
    """Raise RangeError where batch, precision or processes do not fit, naming the key.

    Raises RecipeError for samples that no tracker gets.
    """
    if names and recipe.track.images_every is not None and not recipe.track.trackers:
        raise RecipeError(
            f"track.images_every sends samples to trackers, and there are none, got "
            f"{recipe.track.images_every}. Add trackers, for example --track tensorboard, or leave "
            "it out."
        )
    for name in names:
        stage = next((s for s in recipe.distill.plan() if s.name == name), None)
        try:
            check_trainable(recipe.train_config(stage), device)
            _check_pool_and_shard(recipe, stage)
            if stage is not None:
                parts = recipe.distill.accumulate * processes(device).num_processes
                size = recipe.distill.batch_size // parts * stage.pool
                KINDS[stage.kind].check_part(stage, size)
            images = recipe.track.images_every is not None
            check_tracking(recipe.track.trackers, images, recipe.train_config(stage))
        except FewstepError as error:
            part = "teacher" if stage is None else "distill"
            raise type(error)(f"{part}: {error}") from None


def _check_pool_and_shard(recipe: Recipe, stage: Stage | None) -> None:
    """Raise RangeError for a pool or `shard` that a stage cannot have.

    Neither goes with targets from the student's average: sharding divides the student, and the
    targets of a pool are made before most of its updates. A pool needs images of one size.
    """
    if stage is not None and stage.pool > 1 and recipe.data.buckets:
        raise RangeError(
            f"pool must be 1 for {stage.name} where images have several sizes (data.buckets), of "
            f"which every batch has one, got {stage.pool}. Leave one of them out."
        )
    if stage is None or not KINDS[stage.kind].own_calls(stage, recipe.distill.batch_size):
        return
    if recipe.distill.shard:
        raise RangeError(
            f"shard must be false for {stage.name}, which needs the student's whole average on "
            "every device. Leave it out."
        )
    if stage.pool > 1:
        raise RangeError(
            f"pool must be 1 for {stage.name}, whose targets come from the student's average of "
            f"every update, got {stage.pool}. Leave pool out, or use targets of the teacher alone."
        )


def check_held(recipe: Recipe, found: Found, device: str | None) -> None:
    """Raise RangeError where the weights alone of a given model do not fit into memory."""
    stage = next(iter(recipe.distill.plan()), None)
    if recipe.distill.lora is not None or recipe.distill.shard or stage is None:
        return
    for folder, _ in found.values():
        names = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*.safetensors")
        found_files = {f for part in ("unet", "transformer") for n in names
                       for f in (folder / part).glob(n)}  # fmt: skip
        size = sum(f.stat().st_size for f in found_files)
        # The teacher's own weights beside what is held for each weight of the student.
        place = processes(device).device
        config = recipe.train_config(stage)
        own = 0.5 if recipe.distill.teacher_dtype == "bfloat16" else 1.0
        check_room(stage.name, (COPIES[config.optimizer] + own) * size, config, place)
