"""Recipe files, and what a recipe takes from another by `base:`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from fewstep.errors import RecipeError, did_you_mean
from fewstep.recipes.keys import type_at
from fewstep.recipes.reading import DEEPEST, parse, read_text, shown

BUILT_IN = Path(__file__).parent
RECIPE = "recipe.yaml"
BASE = "base"
OWN = ("name", "about")  # keys that describe one recipe, and are never taken from its base


def built_in_recipes() -> list[str]:
    """Return the names of the recipes that come with fewstep."""
    return sorted(p.stem for p in BUILT_IN.glob("*.yaml"))


def recipe_path(name: str, folder: Path = Path()) -> Path:
    """Return the file of a recipe: a built-in one, or a path relative to `folder`.

    Raises RecipeError where there is none.
    """
    known = built_in_recipes()
    if name in known:
        return BUILT_IN / f"{name}.yaml"
    path = folder / name
    try:
        if (path / RECIPE).is_file():
            return path / RECIPE
        if path.is_file():
            return path
    except (OSError, ValueError):
        pass  # a name that no file can have
    if path.suffix in (".yaml", ".yml"):
        raise RecipeError(
            f"recipe {shown(name)} does not exist. Check the path: a relative one starts at "
            + ("the current folder." if folder == Path() else f"{folder}.")
            + did_you_mean(path.stem[:200], known)
        )
    raise RecipeError(
        f"recipe {shown(name)} is neither built in ({', '.join(known)}) nor a YAML file."
        + did_you_mean(name[:200], known)
    )


@dataclass(frozen=True)
class RecipeFiles:
    """A recipe file and the files that it is based on, read but not checked.

    Attributes:
        files: the path and the own keys of each file; the recipe first, then its base, and so on.
        data: the keys of all together.
    """

    files: tuple[tuple[Path, dict[str, Any]], ...]
    data: dict[str, Any]

    def with_key(self, keys: Sequence[str]) -> Path:
        """Return the file that sets a key; for a key that none sets, that of the part it is in."""
        return max(self.files, key=lambda file: _depth(file[1], keys))[0]


def read_recipe(path: Path) -> RecipeFiles:
    """Return a recipe file with the files it is based on.

    Dictionaries are merged, and every other value replaces that of the base. Null leaves out what
    the base sets, where null is no value of the key.

    Raises RecipeError: a file cannot be read, a base does not exist, or bases form a cycle.
    """
    files: list[tuple[Path, dict[str, Any]]] = []
    following: Path | None = path
    while following is not None:
        own = _own_keys(following)
        if files:
            own = {k: v for k, v in own.items() if k not in OWN}
        files.append((following, own))
        following = _base_of(own.pop(BASE, None), [p for p, _ in files])
    data: dict[str, Any] = {}
    for _, own in reversed(files):
        data = _merged(data, own)
    return RecipeFiles(tuple(files), data)


def _own_keys(path: Path) -> dict[str, Any]:
    data = parse(read_text(path), str(path))
    if not isinstance(data, dict):
        raise RecipeError(
            f"{path} must hold keys and values, and it holds {shown(data)}. A recipe starts with "
            "`name:`."
        )
    return data


def _base_of(base: object, before: Sequence[Path]) -> Path | None:
    """Return the file of a base. before: the files that led to it, the last of which names it."""
    path = before[-1]
    if base is None:
        return None
    if not isinstance(base, str):
        raise RecipeError(
            f"{path}: base must be the name or the path of one recipe, got {shown(base)}. Change "
            "it."
        )
    try:
        found = recipe_path(base, path.parent)
    except RecipeError as error:
        raise RecipeError(f"{path}: base: {error}") from None
    if found.resolve() in [p.resolve() for p in before]:
        way = " -> ".join(str(p) for p in (*before, found))
        raise RecipeError(
            f"{path}: base must not lead back to the same recipe, got {way}. Change one of these "
            "bases."
        )
    return found


def _merged(base: dict[str, Any], own: dict[str, Any], keys: tuple[str, ...] = ()) -> Any:
    out = dict(base)
    for key, value in own.items():
        here = (*keys, str(key))
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        if both and len(here) < DEEPEST:
            out[key] = _merged(base[key], value, here)
        elif value is None and key in base and type(None) not in get_args(type_at(here)):
            del out[key]
        else:
            out[key] = value
    return out


def _depth(data: Any, keys: Sequence[str]) -> int:
    """Return how many of the keys a file sets; all of them where it sets a whole list or value."""
    for depth, key in enumerate(keys):
        if not isinstance(data, dict):
            break
        if key not in data:
            return depth
        data = data[key]
    return len(keys)
