"""Recipes: every setting of a study in one YAML file, checked before anything runs."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from fewstep.atomic import atomic_write
from fewstep.distill.plan import TEACHER
from fewstep.errors import NoDataError, RecipeError, did_you_mean
from fewstep.recipes.reading import RESOLVED, override, parse, read_text, shown
from fewstep.recipes.schema import (
    NO_DATA,
    DistillConfig,
    EvaluateConfig,
    LatentConfig,
    Recipe,
    StageConfig,
    TeacherConfig,
)

__all__ = [
    "RECIPE",
    "TEACHER",
    "DistillConfig",
    "EvaluateConfig",
    "LatentConfig",
    "Recipe",
    "StageConfig",
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

BUILT_IN = Path(__file__).parent
RECIPE = "recipe.yaml"
DEEP = 8  # levels of a recipe that may hold a number
_NUMBER = re.compile(r"\b(int|float)\b")


def built_in_recipes() -> list[str]:
    """Return the names of the recipes that come with fewstep."""
    return sorted(p.stem for p in BUILT_IN.glob("*.yaml"))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe by name or by path of a YAML file, with `key.key=value` overrides applied.

    The folder of a run may be given in place of its `recipe.yaml`.

    Raises RecipeError for an unknown name or file, a line that is not YAML, an unknown key (with
    the nearest known one), or a value that is not allowed; always with the key.
    """
    path = recipe_path(name)
    data = parse(read_text(path), str(path))
    if not isinstance(data, dict):
        raise RecipeError(
            f"{path} must hold keys and values, and it holds {shown(data)}. A recipe starts with "
            "`name:`."
        )
    if not overrides:
        return check_recipe(data, str(path))
    changed = copy.deepcopy(data)
    keys = [override(changed, setting) for setting in overrides]
    try:
        return check_recipe(changed, str(path))
    except RecipeError as error:
        # Which of the two is wrong: the file, or what --set made of it?
        try:
            check_recipe(data, str(path))
        except RecipeError as own:
            if str(own) == str(error):
                raise
        wrong = str(error).removeprefix(f"{path}: ")
        blamed = [s for s, k in zip(overrides, keys, strict=True) if _concerns(k, wrong)]
        given = " ".join(f"--set {s[:100]}" for s in (blamed or overrides)[:3])
        raise type(error)(f"{given}: {wrong}") from None


def recipe_path(name: str) -> Path:
    """Return the file of a recipe. Raises RecipeError where there is none."""
    known = built_in_recipes()
    if name in known:
        return BUILT_IN / f"{name}.yaml"
    path = Path(name)
    try:
        if (path / RECIPE).is_file():
            return path / RECIPE
        if path.is_file():
            return path
    except (OSError, ValueError):
        pass  # a name that no file can have
    raise RecipeError(
        f"recipe {shown(name)} is neither built in ({', '.join(known)}) nor a YAML file."
        + did_you_mean(name[:200], known)
    )


def check_recipe(data: dict[str, Any], where: str) -> Recipe:
    """Return the checked recipe. Raises RecipeError naming the wrong keys, or for a wrong plan."""
    try:
        _check_booleans(data)
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        found = [_explain(e) for e in error.errors(include_url=False)[:3]]
        more = error.error_count() - len(found)
        kind = NoDataError if error.errors()[0]["type"] == NO_DATA else RecipeError
        raise kind(f"{where}: {' '.join(found)}{f' And {more} more.' if more else ''}") from None
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    recipe.distill.plan()  # stages that do not fit together are a wrong recipe
    return recipe


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
    return isinstance(data, dict) and set(Recipe.model_fields) <= set(data)


def differences(a: Recipe, b: Recipe) -> list[str]:
    """Return the dotted keys in which two recipes differ."""
    flat_a, flat_b = (dict(flatten(r.model_dump(mode="json"))) for r in (a, b))
    return [k for k in sorted({*flat_a, *flat_b}) if flat_a.get(k) != flat_b.get(k)]


def flatten(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and the values of nested dictionaries."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, data


def _concerns(key: str, message: str) -> bool:
    """Whether an error is about a key that --set gave: it begins with it, or with a part of it."""
    parts = key.split(".")
    begins = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    named = message.split(" ")[0].rstrip(":")
    return named in begins or named.startswith(f"{key}.") or key in message


def _check_booleans(data: Any, keys: tuple[str, ...] = ()) -> None:
    """Raise RecipeError for true or false where a number belongs: pydantic reads 1 and 0."""
    if isinstance(data, bool):
        field = _field_at([k for k in keys if not k.isdigit()])
        if field is not None and _NUMBER.search(field) and "bool" not in field:
            raise RecipeError(f"{'.'.join(keys)} must be a number, got {data}. Write a number.")
    elif isinstance(data, (dict, list)) and len(keys) < DEEP:
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            _check_booleans(value, (*keys, str(key)))


def _explain(error: Any) -> str:
    keys = [str(k) for k in error["loc"]]
    where = ".".join(keys) or "recipe"
    if error["type"] == "extra_forbidden":
        allowed = _fields_at(keys[:-1])
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


def _field_at(keys: Sequence[str]) -> str | None:
    """Return the type of a key as text, or None where there is no such key."""
    model = _model_at(keys[:-1])
    field = None if model is None or not keys else model.model_fields.get(keys[-1])
    return None if field is None else str(field.annotation)


def _fields_at(keys: Sequence[str]) -> list[str]:
    model = _model_at(keys)
    return [] if model is None else list(model.model_fields)


def _model_at(keys: Sequence[str]) -> type[BaseModel] | None:
    model: type[BaseModel] = Recipe
    for key in keys:
        if key.isdigit():
            continue
        annotation = model.model_fields[key].annotation if key in model.model_fields else None
        inner = next(iter(getattr(annotation, "__args__", ())), annotation)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return None
        model = inner
    return model
