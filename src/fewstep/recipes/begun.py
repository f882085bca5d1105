"""Whether a recipe still fits what a run's folder holds already.

A setting matters for the models that depend on it: those that are finished, and those whose
training has begun. All other settings may be changed.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from fewstep.atomic import check_replaceable, translate_os_errors
from fewstep.distill.plan import TEACHER
from fewstep.errors import FolderError, RecipeError
from fewstep.lock import LOCK
from fewstep.models.card import CARD
from fewstep.recipes.config import RECIPE, Recipe, load_recipe
from fewstep.recipes.depends import settings_of
from fewstep.recipes.reading import shown
from fewstep.recipes.workspace import Workspace, check_name, is_run


@dataclass(frozen=True)
class Change:
    """A setting that a model of the run depends on, and that differs in the new recipe."""

    name: str
    key: str
    old: Any
    new: Any

    @property
    def is_longer(self) -> bool:
        """Whether the new recipe only has more updates."""
        return self.key.endswith("updates") and None not in (self.old, self.new)


def check_folder(workspace: Workspace, trains: Collection[str] | None = None) -> None:
    """Check that a recipe fits the folder of its run; nothing is written.

    trains: the models that the command trains; by default all of the recipe. One that is finished
        may get more updates.

    Raises RecipeError where finished or begun models depend on settings that the recipe changes;
    FolderError where the folder is not a run.
    """
    out = workspace.out
    with translate_os_errors(out):
        _check_targets(workspace)
        try:
            there = sorted(os.listdir(out))
        except FileNotFoundError:  # a file among its parents is another error
            there = []
    if workspace.is_begun:
        path = out / RECIPE
        if not is_run(out):
            raise FolderError(
                f"{path} must be a recipe that fewstep wrote, and it is one of your own. Give "
                "another --out, where nothing of yours can be replaced."
            )
        begun = Workspace(load_recipe(str(path)), out)
        _check_changes(begun, workspace.recipe, workspace.names if trains is None else trains)
    elif set(there) - {LOCK}:
        raise FolderError(
            f"{out} is not empty and has no {RECIPE}; it is not a fewstep run. Give another --out."
        )


def _check_targets(workspace: Workspace) -> None:
    """Raise an error where a model would leave the run's folder, or replace something in it."""
    for name in workspace.names:
        check_name(name)
        for folder in (workspace.folder(name), workspace.training(name)):
            if folder.is_symlink() and not workspace.is_done(name):
                raise FolderError(
                    f"{folder} must be a folder of the run, and it is a link, which could lead "
                    "outside. Remove it, or make --out the link."
                )
        if not workspace.is_done(name):
            check_replaceable(workspace.folder(name), CARD)


def _changes(begun: Workspace, new: Recipe) -> list[Change]:
    """Return the settings that models of the run depend on and that a new recipe changes."""
    old = begun.recipe
    names = [TEACHER, *dict.fromkeys(s.name for r in (old, new) for s in r.distill.plan())]
    found: list[Change] = []
    for name in names:
        if not begun.is_trained_here(name):
            continue
        before, after = settings_of(old, name), settings_of(new, name)
        if before is not None and after is None:
            found.append(Change(name, f"distill.stages ({name})", "made", None))
        elif before is not None and after is not None:
            keys = sorted(k for k in {*before, *after} if before.get(k) != after.get(k))
            found += [Change(name, k, before.get(k), after.get(k)) for k in keys]
    return found


def _check_changes(begun: Workspace, new: Recipe, trains: Collection[str]) -> None:
    """Raise RecipeError where a new recipe does not fit what the run's folder holds.

    trains: the models that the command trains; one of them may get more updates, as long as
        nothing was made from it yet.
    """
    for change in _changes(begun, new):
        if change.is_longer and change.new > change.old and change.name in trains:
            _check_extension(begun, change)
        else:
            raise RecipeError(_refusal(begun, change, trains))


def _check_extension(begun: Workspace, change: Change) -> None:
    name, out = change.name, begun.out
    made = _made_from(begun, name)
    if made is not None:
        raise RecipeError(
            f"{change.key} can be raised while nothing was made from {name}, and {out / made} was. "
            f"Use --out OTHER, or {out / RECIPE} as the recipe to keep its settings."
        )
    if not begun.has_checkpoint(name):
        raise RecipeError(
            f"{change.key} can be raised from {shown(change.old)} to {shown(change.new)} while "
            f"{begun.training(name)} has a checkpoint, and it has none. Use --out OTHER to train "
            "from the start."
        )


def _made_from(begun: Workspace, name: str) -> str | None:
    """Return a model of the run that was, or is being, made from the model `name`, or None."""
    children = [s.name for s in begun.plan if name in (s.parent, s.teacher)]
    return next((c for c in children if begun.is_done(c) or begun.has_checkpoint(c)), None)


def _refusal(begun: Workspace, change: Change, trains: Collection[str]) -> str:
    out = begun.out
    depends = f"{out / change.name} depends on it"
    if change.new is None and change.old == "made":
        what = f"the recipe no longer has the stage {change.name}, which {out} holds"
    else:
        what = (
            f"{out} was begun with {change.key} = {shown(change.old)} and the recipe now has "
            f"{shown(change.new)}, and {depends}"
        )
    keep = f"Use {out / RECIPE} as the recipe to keep its settings"
    other = "use --out OTHER"
    if change.name != TEACHER and begun.is_done(TEACHER):
        other = f"use --teacher {out / TEACHER} --out OTHER"
    is_teacher = change.name == TEACHER and TEACHER not in trains
    if is_teacher and change.is_longer and _made_from(begun, TEACHER) is None:
        other += ", or run `fewstep train` with these settings to train the teacher on"
    return f"{what}. {keep}, or {other}."
