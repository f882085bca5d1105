"""Recipes: every setting of a study in one YAML file, checked before anything runs."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fewstep.atomic import atomic_write
from fewstep.distill.plan import TEACHER
from fewstep.errors import NoDataError, RecipeError, did_you_mean
from fewstep.recipes.base import BASE, RECIPE, built_in_recipes, read_recipe, recipe_path
from fewstep.recipes.keys import flatten, keys_at, type_at
from fewstep.recipes.reading import RESOLVED, override, parse, read_text, shown
from fewstep.recipes.schema import (
    NO_DATA,
    DistillConfig,
    EvaluateConfig,
    LatentConfig,
    Recipe,
    TeacherConfig,
)

__all__ = [
    "RECIPE",
    "TEACHER",
    "DistillConfig",
    "EvaluateConfig",
    "LatentConfig",
    "Recipe",
    "TeacherConfig",
    "built_in_recipes",
    "check_recipe",
    "differences",
    "flatten",
    "is_resolved",
    "load_recipe",
    "recipe_path",
    "save_recipe",
]

DEEP = 8  # levels of a recipe that may hold a number
Where = Callable[[Sequence[str]], object]  # keys -> the file that they are in
_NUMBER = re.compile(r"\b(int|float)\b")


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe by name or by path of a YAML file, with `key.key=value` overrides applied.

    The folder of a run may be given in place of its `recipe.yaml`. A recipe with `base:` is the
    recipe of that name or path, with its own keys merged into it.

    Raises RecipeError for an unknown name or file, a line that is not YAML, an unknown key (with
    the nearest known one), or a value that is not allowed; always with the file and the key.
    """
    path = recipe_path(name)
    read = read_recipe(path)
    where = read.with_key
    if not overrides:
        return _check(read.data, where)
    changed = copy.deepcopy(read.data)
    keys = [override(changed, setting) for setting in overrides]
    try:
        return _check(changed, where)
    except RecipeError as error:
        # Which of the two is wrong: the file, or what --set made of it?
        try:
            _check(read.data, where)
        except RecipeError as own:
            if str(own) == str(error):
                raise
        wrong = str(error)
        for file, _ in read.files:
            wrong = wrong.removeprefix(f"{file}: ")
        blamed = [s for s, k in zip(overrides, keys, strict=True) if _concerns(k, wrong)]
        given = " ".join(f"--set {s[:100]}" for s in (blamed or overrides)[:3])
        raise type(error)(f"{given}: {wrong}") from None


def check_recipe(data: dict[str, Any], where: str) -> Recipe:
    """Return the checked recipe. Raises RecipeError naming the wrong keys, or for a wrong plan."""
    return _check(data, lambda _: where)


def _check(data: dict[str, Any], where: Where) -> Recipe:
    _check_booleans(data, where)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise _refusal(error, where) from None
    recipe.distill.plan()  # stages that do not fit together are a wrong recipe
    return recipe


def _refusal(error: ValidationError, where: Where) -> RecipeError:
    """Return the error of a wrong recipe: the first file with wrong keys, and three of them."""
    found = error.errors(include_url=False)
    files = [str(where([str(k) for k in e["loc"]])) for e in found]
    explained = [_explain(e) for e, file in zip(found, files, strict=True) if file == files[0]][:3]
    kind = NoDataError if found[0]["type"] == NO_DATA else RecipeError
    more = len(found) - len(explained)
    return kind(f"{files[0]}: {' '.join(explained)}{f' And {more} more.' if more else ''}")


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe; `load_recipe` of it gives the same recipe."""
    text = yaml.safe_dump(json.loads(recipe.model_dump_json()), sort_keys=False)
    atomic_write(path, (RESOLVED + text).encode())


def is_resolved(path: Path) -> bool:
    """Whether a recipe file was written by `save_recipe`: by its first line, or its many keys."""
    text = read_text(path)
    if text.startswith(RESOLVED):
        return True
    data = parse(text, str(path))
    # `track` is newer than the first line.
    return isinstance(data, dict) and set(Recipe.model_fields) - {"track"} <= set(data)


def differences(a: Recipe, b: Recipe) -> list[str]:
    """Return the dotted keys in which two recipes differ."""
    flat_a, flat_b = (dict(flatten(r.model_dump(mode="json"))) for r in (a, b))
    return [k for k in sorted({*flat_a, *flat_b}) if flat_a.get(k) != flat_b.get(k)]


def _concerns(key: str, message: str) -> bool:
    """Whether an error is about a key that --set gave: it begins with it, or with a part of it."""
    parts = key.split(".")
    begins = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    named = message.split(" ")[0].rstrip(":")
    return named in begins or named.startswith(f"{key}.") or key in message


def _check_booleans(data: Any, where: Where, keys: tuple[str, ...] = ()) -> None:
    """Raise RecipeError for true or false where a number belongs: pydantic reads 1 and 0."""
    if isinstance(data, bool):
        kind = str(type_at(keys))
        if _NUMBER.search(kind) and "bool" not in kind:
            raise RecipeError(
                f"{where(keys)}: {'.'.join(keys)} must be a number, got {data}. Write a number."
            )
    elif isinstance(data, (dict, list)) and len(keys) < DEEP:
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            _check_booleans(value, where, (*keys, str(key)))


def _explain(error: Any) -> str:
    keys = [str(k) for k in error["loc"]]
    where = ".".join(keys) or "recipe"
    if where == BASE:
        return "base must stand in the recipe's file, and --set cannot change it. Write it there."
    if error["type"] == "extra_forbidden":
        allowed = keys_at(keys[:-1]) + [BASE] * (len(keys) == 1)
        hint = did_you_mean(keys[-1][:200], allowed) or f" It may be {', '.join(allowed)}."
        return f"{where[:200]} is not a key.{hint}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] in ("value_error", NO_DATA):
        # Of a whole part of the recipe: its own words name the keys.
        inside = f"{where}: " if keys else ""
        return f"{inside}{message}."
    if error["type"] == "missing":
        return f"{where} is required. Add it."
    message = message.replace("Input should be", "must be").replace("Input should", "must")
    advice = " Put it in quotes." if error["type"] == "string_type" else " Change it."
    return f"{where} {message}, got {shown(error['input'])}.{advice}"
