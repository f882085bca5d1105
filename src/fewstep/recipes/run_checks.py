"""What must hold before a run writes to its folder, and before it trains."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from fewstep.distill.plan import TEACHER, Stage
from fewstep.errors import DataError, FolderError
from fewstep.folders import card_in
from fewstep.recipes.begun import check_folder
from fewstep.recipes.preflight import (
    check_data,
    check_fit,
    check_held,
    check_stages,
    check_teacher,
    check_trainings,
    found_models,
)
from fewstep.recipes.teachers import name_of
from fewstep.recipes.training_data import TrainingData
from fewstep.recipes.workspace import Workspace


def check_run(
    data: TrainingData,
    trains: Collection[str] | None = None,
    teachers: Sequence[Path] = (),
    *,
    plan: bool = False,
) -> None:
    """Check everything that can be checked before anything is written or trained.

    trains: names of the models that will be trained; by default all of the recipe.
    teachers: folders that are given for the run. plan: data and teachers may be missing.

    Raises a FewstepError for the first thing that does not fit: folders, settings, teachers,
    steps, batches, memory, data.
    """
    workspace = data.workspace
    check_folder(workspace, trains)
    names = workspace.names if trains is None else trains
    found = found_models(workspace, teachers)
    given = {name_of(card_in(folder), folder) for folder in teachers}
    if given:
        given.add(TEACHER)  # a command that is given a model trains no teacher
    todo = [n for n in names if n not in given and not workspace.is_made(n)]
    if plan and not data.are_there:
        check_training(data, todo, teachers, parents=bool(found), images=False)
        data.say(f"not checked: the data, since {workspace.recipe.data.name} is not there")
    else:
        check_training(data, todo, teachers, parents=bool(found) or not plan)


def check_training(
    data: TrainingData,
    names: Collection[str],
    teachers: Sequence[Path] = (),
    *,
    parents: bool = True,
    images: bool = True,
) -> None:
    """Check that models can be trained one after the other.

    parents: also require that every parent is there, given, or made before. images: also open
    the images.
    """
    workspace, recipe = data.workspace, data.workspace.recipe
    stages = [s for s in workspace.plan if s.name in names]
    check_trainings(recipe, names, data.device)
    found = found_models(workspace, teachers)
    there = {*found, TEACHER} if TEACHER in names else {*found}
    check_stages(workspace, stages, found, parents=there if parents else None)
    if not names:
        return
    if stages:
        check_held(recipe, found, data.device)
    if images:
        if TEACHER in names:
            check_teacher(recipe, data.images)
        check_data(recipe, stages, data.images)
        check_images(data, [TEACHER, *(n for s in stages for n in (s.parent, s.teacher))])
        check_fit(recipe, found, data.images)


def check_images(data: TrainingData, names: Collection[str]) -> None:
    """Raise DataError where models of the run were trained on other images than these.

    Where the images cannot be opened, nothing is checked.
    """
    workspace = data.workspace
    for name in dict.fromkeys(names):
        if not workspace.is_done(name) or not workspace.is_trained_here(name):
            continue
        then = workspace.card(name).training.get("data_sha256")
        if then is None or not data.are_there:
            continue
        now = data.images.content_hash()
        if then != now:
            raise DataError(
                f"the images must be those that {workspace.folder(name)} was trained on, and "
                f"{workspace.recipe.data.name} now holds other images, or is read in another way "
                f"(hash {str(then)[:8]} -> {now[:8]}). Restore them, or use --teacher "
                f"{workspace.folder(TEACHER)} --out OTHER to continue with the new ones."
            )


def check_parent(workspace: Workspace, name: str, stage: Stage) -> None:
    """Raise FolderError where a finished student was made from other models than the run's."""
    card = workspace.card(name)
    made_from = {stage.parent: card.parents[0] if card.parents else None}
    if stage.teacher != stage.parent:
        made_from[stage.teacher] = card.teacher
    for other, then in made_from.items():
        if then is None or not workspace.is_done(other):
            continue
        if then.sha256 != workspace.card(other).weights_sha256:
            folder = workspace.folder(name)
            raise FolderError(
                f"{folder} must be made from {workspace.folder(other)}, and it was made from "
                f"another {other}. Remove {folder} to make it again, or use --out OTHER."
            )
