"""The keys of a recipe: which there are, what type each has, and their dotted names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from fewstep.recipes.schema import Recipe


def flatten(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and the values of nested dictionaries."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, data


def type_at(keys: Sequence[str]) -> Any:
    """Return the type of a key, or None where there is no such key."""
    keys = [k for k in keys if not k.isdigit()]
    model = model_at(keys[:-1])
    field = None if model is None or not keys else model.model_fields.get(keys[-1])
    return None if field is None else field.annotation


def keys_at(keys: Sequence[str]) -> list[str]:
    """Return the keys inside a part of a recipe."""
    model = model_at([k for k in keys if not k.isdigit()])
    return [] if model is None else list(model.model_fields)


def model_at(keys: Sequence[str]) -> type[BaseModel] | None:
    """Return the model that describes a part of a recipe, or None where there is no such part."""
    model: type[BaseModel] = Recipe
    for key in keys:
        annotation = model.model_fields[key].annotation if key in model.model_fields else None
        inner = next(iter(getattr(annotation, "__args__", ())), annotation)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return None
        model = inner
    return model
