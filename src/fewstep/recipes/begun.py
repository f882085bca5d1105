"""What a run's folder holds already, and whether a recipe still fits it.

A setting matters for the models that depend on it: those that are finished, and those whose
training has begun. All other settings may be changed.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.atomic import atomic_write
from fewstep.distill.plan import STAGE_ONE, TEACHER
from fewstep.errors import RecipeError
from fewstep.models import read_card
from fewstep.models.card import CARD
from fewstep.recipes.config import RECIPE, Recipe, flatten, is_resolved
from fewstep.recipes.reading import shown
from fewstep.train import begun_run

TRAINING = "training"
# What else a run writes into its folder; no model may have one of these names.
RESERVED = {
    *(RECIPE, TRAINING, "evaluation", "seconds.json", "report.html", "report.json"),
    *("table.md", "table.csv", "plots", "sheets", "latents", "features"),
}
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
# Where data and encoders are may change; that they are the same is in every fingerprint.
# data.cond is a copy of latents.cond, which is the key that users set.
_PLACES = {"latents": {"folder", "root"}, "data": {"name", "cond"}}


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


def check_name(name: str) -> None:
    """Raise RecipeError unless a name can be that of a model, and so of its folder in the run."""
    if not NAME.fullmatch(name) or ".." in name or name.endswith("."):
        raise RecipeError(
            "the name of a stage must be a folder name of at most 64 lower-case letters, digits, "
            f"dashes, underscores and single dots, got {shown(name)}. Choose another name."
        )
    if name in RESERVED:
        raise RecipeError(
            f"the name of a stage must be free, and fewstep uses {name!r} itself. Choose another "
            "name, for example my-student."
        )


def is_run(out: Path) -> bool:
    """Whether a folder is a run: it holds a recipe that fewstep wrote."""
    path = out / RECIPE
    return path.is_file() and is_resolved(path)


def is_done(out: Path, name: str) -> bool:
    """Whether the model of that name is finished."""
    return (out / name / CARD).is_file()


def has_checkpoint(out: Path, name: str) -> bool:
    """Whether the training of that model has a checkpoint to continue from."""
    return begun_run(out / TRAINING / name / "checkpoints") is not None


def trained_here(out: Path, recipe: Recipe, name: str) -> bool:
    """Whether a model was, or is being, trained in this run, and not brought in with --teacher.

    recipe: of the run.
    """
    if has_checkpoint(out, name):
        return True
    if not is_done(out, name) or (out / TRAINING / f"{name}.given").is_file():
        return False
    if name not in (TEACHER, STAGE_ONE) or (out / TRAINING / name).is_dir():
        return True
    # The folder of the training may have been removed to free space.
    made = read_card(out / name).training
    settings = settings_of(recipe, name) or {}
    return made.get("recipe") == recipe.name and made.get("updates") == settings.get(
        _updates_key(name)
    )


def note_given(out: Path, name: str) -> None:
    """Note that a model was brought in with --teacher, however alike its recipe is to this one."""
    atomic_write(out / TRAINING / f"{name}.given", b"")


def settings_of(recipe: Recipe, name: str) -> dict[str, Any] | None:
    """Return the settings that a model depends on, under their keys in the recipe.

    None where the recipe does not make a model of that name.
    """
    stage = next((s for s in recipe.distill.plan() if s.name == name), None)
    if stage is None and name != TEACHER:
        return None
    data = recipe.model_dump(mode="json")
    parts = {k: data[k] for k in ("seed", "data", "latents", "network")}
    for key, places in _PLACES.items():
        if parts[key] is not None:
            parts[key] = {k: v for k, v in parts[key].items() if k not in places}
    config = recipe.train_config(stage).identity()
    if stage is None:
        parts["teacher"] = {**config, "dropout": recipe.teacher.dropout}
    else:
        own = {k: v for k, v in stage.identity().items() if k != "name"}
        own["lr"] = config.pop("lr")
        del config["updates"]
        parts["distill"] = {**config, "w": data["distill"]["w"], "lora": data["distill"]["lora"]}
        parts["distill"][f"stages ({name})"] = own
    return dict(flatten(parts))


def changes(out: Path, old: Recipe, new: Recipe) -> list[Change]:
    """Return the settings that models of the run depend on and that a new recipe changes."""
    names = [TEACHER, *dict.fromkeys(s.name for r in (old, new) for s in r.distill.plan())]
    found: list[Change] = []
    for name in names:
        if not trained_here(out, old, name):
            continue
        before, after = settings_of(old, name), settings_of(new, name)
        if before is not None and after is None:
            found.append(Change(name, f"distill.stages ({name})", "made", None))
        elif before is not None and after is not None:
            keys = sorted(k for k in {*before, *after} if before.get(k) != after.get(k))
            found += [Change(name, k, before.get(k), after.get(k)) for k in keys]
    return found


def check_changes(out: Path, old: Recipe, new: Recipe, trains: Collection[str]) -> None:
    """Raise RecipeError where a new recipe does not fit what the run's folder holds.

    trains: the models that the command trains; one of them may get more updates, as long as
        nothing was made from it yet.
    """
    for change in changes(out, old, new):
        if change.is_longer and change.new > change.old and change.name in trains:
            _check_extension(out, old, change)
        else:
            raise RecipeError(_refusal(out, old, change, trains))


def _check_extension(out: Path, old: Recipe, change: Change) -> None:
    name = change.name
    made = _made_from(out, old, name)
    if made is not None:
        raise RecipeError(
            f"{change.key} can be raised while nothing was made from {name}, and {out / made} was. "
            f"Use --out OTHER, or {out / RECIPE} as the recipe to keep its settings."
        )
    if not has_checkpoint(out, name):
        raise RecipeError(
            f"{change.key} can be raised from {shown(change.old)} to {shown(change.new)} while "
            f"{out / TRAINING / name} has a checkpoint, and it has none. Use --out OTHER to train "
            "from the start."
        )


def _made_from(out: Path, recipe: Recipe, name: str) -> str | None:
    """Return a model of the run that was, or is being, made from the model `name`, or None."""
    children = [s.name for s in recipe.distill.plan() if s.parent == name]
    return next((c for c in children if is_done(out, c) or has_checkpoint(out, c)), None)


def _refusal(out: Path, old: Recipe, change: Change, trains: Collection[str]) -> str:
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
    if change.name != TEACHER and is_done(out, TEACHER):
        other = f"use --teacher {out / TEACHER} --out OTHER"
    is_teacher = change.name == TEACHER and TEACHER not in trains
    if is_teacher and change.is_longer and _made_from(out, old, TEACHER) is None:
        other += ", or run `fewstep train` with these settings to train the teacher on"
    return f"{what}. {keep}, or {other}."


def updates_of(recipe: Recipe, name: str) -> int | None:
    """Return how many updates a recipe trains a model for; None where it does not make it."""
    settings = settings_of(recipe, name)
    return None if settings is None else int(settings[_updates_key(name)])


def _updates_key(name: str) -> str:
    return "teacher.updates" if name == TEACHER else f"distill.stages ({name}).updates"
