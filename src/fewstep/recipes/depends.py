"""The settings of a recipe that one of its models depends on."""

from __future__ import annotations

from typing import Any

from fewstep.distill.plan import TEACHER
from fewstep.recipes.config import Recipe, flatten

# Where data and encoders are may change; that they are the same is in every fingerprint.
# data.cond is a copy of latents.cond, which is the key that users set.
_PLACES = {"latents": {"folder", "root"}, "data": {"name", "cond"}}


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
        config.pop("pool", None)
        shared = {k: data["distill"][k] for k in ("w", "lora", "teacher_dtype")}
        parts["distill"] = {**config, **shared}
        parts["distill"][f"stages ({name})"] = own
    return dict(flatten(parts))


def updates_of(recipe: Recipe, name: str) -> int | None:
    """Return how many updates a recipe trains a model for; None where it does not make it."""
    settings = settings_of(recipe, name)
    if settings is None:
        return None
    key = "teacher.updates" if name == TEACHER else f"distill.stages ({name}).updates"
    return int(settings[key])
