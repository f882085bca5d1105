"""Write the reference of recipe keys and of the command line, from the code.

    python -m studies reference docs/reference

The keys come from the JSON schema of the recipe, and their meanings from the docstrings of its
classes. The commands come from their own `--help`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from fewstep.cli.main import app
from fewstep.recipes.keys import model_at
from fewstep.recipes.schema import Recipe
from studies.common import StudyError, argument_parser, markdown

WIDTH = 88  # characters of the printed help
KEYS = """# Recipe keys

Every key of a recipe ([Recipes](../guide/recipes.md)): its type and range, its default, and what it
means. A key without a default is required. `--set KEY=VALUE` overrides a key on the command line.
This page is made from the code by `python -m studies reference docs/reference`.
"""
BASE = (
    "`base`", "text", "null",
    "Another recipe, built-in or a file, into which the keys of this one are merged.",
)  # fmt: skip
COMMANDS = """# Command line

What `fewstep COMMAND --help` prints. This page is made from the code by
`python -m studies reference docs/reference`.
"""


def main(arguments: Sequence[str]) -> None:
    """Write both pages."""
    parser = argument_parser("reference", __doc__ or "")
    parser.add_argument("out", type=Path, help="folder of the pages")
    out = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe-keys.md").write_text(recipe_keys(), encoding="utf-8")
    (out / "cli.md").write_text(command_line(), encoding="utf-8")


def recipe_keys() -> str:
    """Return the page of all keys, one table per part of a recipe."""
    schema = Recipe.model_json_schema()
    parts = [KEYS]
    for path, part in _parts(schema, schema["$defs"], ""):
        model = model_at([k for k in path.split(".") if k])
        if model is None:
            raise StudyError(f"every part of a recipe must be a model; {path} is not.")
        rows = list(_rows(path, part, schema["$defs"], _meanings(model)))
        rows += [] if path else [BASE]
        title = f"## `{path}`" if path else "## The recipe"
        parts.append(f"{title}\n\n{markdown(('key', 'type', 'default', 'meaning'), rows)}\n")
    return "\n".join(parts)


def _parts(
    schema: dict[str, Any], defs: dict[str, Any], path: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the parts of a recipe and the paths of their keys, outer parts first."""
    yield path, schema
    for key, value in schema["properties"].items():
        name = _model_name(value)
        if name:
            yield from _parts(defs[name], defs, f"{path}.{key}" if path else key)


def _model_name(value: dict[str, Any]) -> str | None:
    """Return the name of the part that a key holds, or of which it holds a list."""
    options = [value, value.get("items", {}), *value.get("anyOf", ())]
    found = [o["$ref"].rpartition("/")[2] for o in options if "$ref" in o]
    return found[0] if found else None


def _rows(
    path: str, schema: dict[str, Any], defs: dict[str, Any], meanings: dict[str, str]
) -> Iterator[tuple[str, str, str, str]]:
    for key, value in schema["properties"].items():
        whole = f"{path}.{key}" if path else key
        name = _model_name(value)
        if name:
            many = "list of these parts" if value.get("type") == "array" else "a part"
            default = "null" if {"type": "null"} in value.get("anyOf", ()) else ""
            yield f"`{key}`", many, default, f"See [`{whole}`](#{whole.replace('.', '')})."
            continue
        if key not in meanings:
            raise StudyError(
                f"every key must be described in its class's docstring; {whole} is not."
            )
        required = key in schema.get("required", ())
        default = "" if required else f"`{_shown(value.get('default'))}`"
        yield f"`{key}`", _type(value, defs), default, meanings[key].replace("|", "\\|")


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_shown(v) for v in value) + "]"
    return f'"{value}"' if value == "" or value == "{}" else str(value)


def _type(value: dict[str, Any], defs: dict[str, Any]) -> str:
    """Return the type of a key and its range, in words."""
    if "$ref" in value:
        return _type(defs[value["$ref"].rpartition("/")[2]], defs)
    if "anyOf" in value:
        return " or ".join(_type(option, defs) for option in value["anyOf"])
    if "enum" in value or "const" in value:
        return ", ".join(f"`{_shown(v)}`" for v in value.get("enum", [value.get("const")]))
    kind = str(value.get("type", "any"))
    if kind == "array":
        if "prefixItems" in value:
            return f"{len(value['prefixItems'])} × {_type(value['prefixItems'][0], defs)}"
        return f"list of {_type(value['items'], defs)}"
    if kind in ("integer", "number"):
        return {"integer": "integer", "number": "number"}[kind] + _bounds(value)
    names = {"boolean": "`true`, `false`", "string": "text", "null": "null"}
    return names.get(str(kind), str(kind))


def _bounds(value: dict[str, Any]) -> str:
    low, over = value.get("minimum"), value.get("exclusiveMinimum")
    high, under = value.get("maximum"), value.get("exclusiveMaximum")
    left = f"≥ {low:g}" if low is not None else f"> {over:g}" if over is not None else ""
    right = f"≤ {_large(high)}" if high is not None else f"< {_large(under)}" if under else ""
    both = ", ".join(side for side in (left, right) if side)
    return f" {both}" if both else ""


def _large(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) and number < 10**12 else f"{number:g}"


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return what the docstrings of a class and its bases say of each attribute."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
        _, _, attributes = text.partition("Attributes:\n")
        block = attributes.split("\n\n")[0]
        for entry in re.split(r"\n(?=    \w)", "\n" + block):
            names, colon, meaning = " ".join(entry.split()).partition(": ")
            if colon:
                found |= {name.strip(): _sentence(meaning) for name in names.split(",")}
    return found


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def command_line() -> str:
    """Return the page of all commands: the help of each."""
    root = typer.main.get_command(app)
    return "\n".join([COMMANDS, *_help(root, "fewstep", None)])


def _help(command: Any, name: str, parent: Any) -> Iterator[str]:
    context = command.make_context(
        name,
        [],
        parent=parent,
        resilient_parsing=True,
        max_content_width=WIDTH,
        terminal_width=WIDTH,
    )
    title = f"## {name}" if parent is None else f"### {context.command_path}"
    yield f"{title}\n\n```text\n{command.get_help(context).strip()}\n```\n"
    for sub in getattr(command, "commands", {}):
        yield from _help(command.commands[sub], sub, context)
