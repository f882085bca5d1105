"""Where a run's teacher comes from: a new network, or a folder from elsewhere that must fit."""

from __future__ import annotations

from pathlib import Path

import torch

import fewstep
from fewstep.core.seed import derive
from fewstep.data import Dataset
from fewstep.distill.plan import STAGE_ONE, TEACHER
from fewstep.errors import FolderError, RecipeError
from fewstep.folders import card_in, is_pipeline, load_model
from fewstep.models import Card, Model, build_unet, read_card
from fewstep.models.card import OWN
from fewstep.models.clocks.native import CLOCK
from fewstep.models.families.latent_class import LATENT_CLASS
from fewstep.models.families.unet_class import UNET_CLASS
from fewstep.recipes.config import Recipe
from fewstep.recipes.latents import check_length
from fewstep.recipes.training_data import TrainingData


def fresh_teacher(data: TrainingData, images: Dataset) -> Model:
    """Return the network to train: that of a stock pipeline folder, or a new one.

    images: of the data, which name the classes.
    """
    recipe = data.workspace.recipe
    if recipe.latents is not None and is_pipeline(data.encoders):
        card = card_in(data.encoders)
        if not card.is_teacher:
            raise FolderError(
                f"latents.folder must be the folder of a teacher, and {data.encoders} is a "
                "student. Give the folder of the pipeline that it was made from."
            )
        if recipe.latents.cond == condition_of(card):
            model = load_parent(recipe, data.encoders)
            model.card = model.card.model_copy(update={"name": TEACHER, "figures": {}})
            return model
    shape = data.dataset.shape
    with torch.random.fork_rng(devices=[]):
        # diffusers initialises from the global generator; the fork leaves the caller's alone.
        torch.default_generator.manual_seed(derive(recipe.seed, "init"))
        unet = build_unet(recipe.network, shape, images.num_classes)
    card = Card(
        fewstep=fewstep.__version__,
        family=(UNET_CLASS if recipe.latents is None else LATENT_CLASS).name,
        name=TEACHER,
        stage=recipe.teacher.stage,
        clock=CLOCK,
        shape=shape,
        num_classes=images.num_classes,
        class_names=images.class_names,
        null_class=images.num_classes,
    )
    return Model(unet, card, source=None if recipe.latents is None else data.encoders)


def load_parent(recipe: Recipe, folder: Path) -> Model:
    """Return the network of a folder, with the negative prompt and its length of the recipe."""
    latents = recipe.latents
    if latents is None:
        return load_model(folder)
    model = load_model(folder, negative_prompt=latents.negative_prompt)
    length = {"max_sequence_length": latents.max_sequence_length}
    model.card = model.card.model_copy(update=length)
    return model


def hold_teacher(teacher: Model, recipe: Recipe, device: torch.device) -> None:
    """Move a stage's teacher to the device, in `distill.teacher_dtype`, unless it is shared out.

    It comes from the CPU, so that no device holds it whole in float32 first.
    """
    hold_matrices(teacher, getattr(torch, recipe.distill.teacher_dtype))
    if not recipe.distill.shard:
        teacher.to(device)


def hold_matrices(model: Model, dtype: torch.dtype) -> None:
    """Hold the matrices of a network in this dtype from now on.

    Autocast rounds them to bf16 at every call anyway. Norms and biases are small and stay as they
    are. A LoRA student's frozen weights are the same tensors: before its adapter is merged into
    them they must be float32 again, or what it learnt would be rounded too.
    """
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data = weight.data.to(dtype)


def name_of(card: Card, folder: Path) -> str:
    """Return the name of a given model in the run: teacher or stage-one.

    Raises FolderError for a student of a fixed number of steps.
    """
    if card.stage.counts:
        counts = ", ".join(map(str, card.stage.counts))
        raise FolderError(
            f"--teacher must be a teacher or the model of stage one, and {folder} is a student of "
            f"{counts} steps, not a teacher. Use the folder that it was made from."
        )
    return TEACHER if card.is_teacher else STAGE_ONE


def condition_of(card: Card) -> str:
    """Return what a model is conditioned on, as `latents.cond` has it."""
    return "class" if card.num_classes else "prompt"


def check_kind(recipe: Recipe, card: Card, folder: Path) -> None:
    """Raise RecipeError unless the recipe's data are of the kind that the model works on."""
    latents, takes = recipe.latents, condition_of(card)
    if card.family == OWN:
        raise RecipeError(
            f"--teacher must be a model that fewstep can build, and {folder} holds a module of "
            "your own. Distil it in Python, with fewstep.load(FOLDER, factory=...) and "
            "fewstep.StepDistillation."
        )
    if latents is None and card.family != UNET_CLASS.name:
        raise RecipeError(
            f"{folder} works on latents and {recipe.name} has images; write `latents:` into the "
            f"recipe, for example with --set latents.cond={takes}."
        )
    if latents is not None and card.family == UNET_CLASS.name:
        raise RecipeError(
            f"{folder} works on images and {recipe.name} has latents; leave `latents:` out."
        )
    if latents is not None:
        check_length(latents, folder)
    if latents is not None and latents.cond != takes:
        raise RecipeError(
            f"latents.cond={latents.cond}, and {folder} draws by "
            f"{'classes' if takes == 'class' else 'prompts'}; set latents.cond={takes}."
        )


def check_same(given: Path, ours: Path, recipe: Recipe) -> None:
    """Raise FolderError unless the model of a run is a copy of the one that is given now."""
    theirs, card = card_in(given), read_card(ours)
    prompt = None if recipe.latents is None else recipe.latents.negative_prompt
    differs = [
        f"{key} {old!r} -> {new!r}"
        for key, old, new in (
            ("clock", card.clock, theirs.clock),
            ("prediction", card.prediction, theirs.prediction),
            ("shape", card.shape, theirs.shape),
            ("negative prompt", card.null_prompt, theirs.null_prompt if prompt is None else prompt),
        )
        if old != new
    ]
    if not differs and not _same_weights(given, theirs, ours, card):
        differs = ["weights"]
    if differs:
        raise FolderError(
            f"{ours} must be a copy of the given {given}, and it is another model ("
            f"{', '.join(differs)}). Use --out OTHER for the new teacher, or leave --teacher out "
            "to keep that of this run."
        )


def _same_weights(given: Path, theirs: Card, ours: Path, card: Card) -> bool:
    if theirs.weights_sha256 and theirs.weights_sha256 == card.weights_sha256:
        return True
    # Saved by two libraries, or in several files, the same weights have other hashes.
    a, b = (load_model(folder).state_dict() for folder in (given, ours))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k].to(a[k].dtype)) for k in a)
