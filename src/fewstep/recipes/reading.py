"""Reading a recipe's text: encodings, YAML that means one thing, and `--set KEY=VALUE`."""

from __future__ import annotations

import codecs
import reprlib
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from fewstep.errors import RecipeError, in_units

LARGEST = 1 << 20  # bytes; a recipe is a page or two
LONGEST = 200  # characters of a key
DEEPEST = 32  # levels of lists and keys inside each other
MOST_VALUES = 100_000  # in all, with what YAML aliases repeat
RESOLVED = "# The resolved recipe of this run, written by fewstep.\n"
_DATE = "tag:yaml.org,2002:timestamp"
_LISTS = 4  # digits of a place in a list

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 60


def shown(value: object) -> str:
    """Return a value for an error message: short, whatever it is."""
    return _brief.repr(value)


def read_text(path: Path) -> str:
    """Return the text of a recipe in UTF-8, or in UTF-16 with a byte order mark.

    Raises RecipeError: it cannot be opened, is too large, or is in another encoding.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"{path} cannot be read: {reason}. Pass another recipe.") from None
    if len(data) > LARGEST:
        raise RecipeError(
            f"a recipe must be smaller than {in_units(LARGEST)}, and {path} is larger. Pass a "
            "YAML file of settings."
        )
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RecipeError(
            f"{path}, line {line}: a recipe must be UTF-8 text, and the byte "
            f"0x{data[error.start]:02x} is not. Save the file as UTF-8."
        ) from None


def parse(text: str, where: str) -> Any:
    """Return what YAML text holds. Dates stay text.

    Raises RecipeError, with the line: text that is not YAML, a key that is given twice, a control
    character, lists inside lists without end, a number of thousands of digits, aliases that repeat
    each other.
    """
    try:
        loader = _Loader(text)
        try:
            found = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        before = text[: error.position].count("\n")
        raise RecipeError(
            f"{where}, line {before + 1}: a recipe must be plain text, and it holds the control "
            f"character {_code(error.character)}. Remove it."
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise RecipeError(f"{where}{line} is not YAML: {problem}.") from None
    if _count(found, {}) > MOST_VALUES:
        raise RecipeError(
            f"{where} must hold at most {MOST_VALUES:,} values, and its aliases (*name) repeat "
            "more. Write the values themselves."
        )
    return found


def _count(value: object, known: dict[int, int]) -> int:
    """Return the number of values, with each repetition of an alias; a loop counts once."""
    if not isinstance(value, list | dict):
        return 1
    if id(value) not in known:
        known[id(value)] = 1
        inside = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(v, known) for v in inside)
    return known[id(value)]


def parse_value(text: str, where: str) -> Any:
    """Return the value of `--set KEY=VALUE`: a list, a dictionary or quoted text, or one scalar.

    A scalar is the whole text: a `#` in it is part of the value and begins no comment.
    Raises RecipeError as `parse` does.
    """
    text = text.strip()
    if text.startswith(("[", "{", '"', "'")):
        return parse(text, where)
    loader = _Loader("")
    try:
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        return loader.construct_object(yaml.ScalarNode(tag, text))
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "cannot be read"
        raise RecipeError(f"{where}: {problem}.") from None
    finally:
        loader.dispose()


def override(data: dict[str, Any], setting: str) -> str:
    """Apply one `--set KEY=VALUE` to the keys and values of a recipe; return the key.

    Raises RecipeError: not of that form, or a key inside something that has none.
    """
    dotted, equals, text = setting.partition("=")
    dotted = dotted.strip()
    keys = dotted.split(".")
    if not equals or not all(keys) or len(keys) > DEEPEST or len(dotted) > LONGEST:
        raise RecipeError(
            f"--set must have the form key.key=value, got {shown(setting)}. Write for example "
            "--set distill.lr=1e-3."
        )
    try:
        setting.encode()
    except UnicodeEncodeError:
        raise RecipeError(
            f"--set must be UTF-8 text, got {shown(setting)}. Rename a file or folder whose name "
            "is not UTF-8."
        ) from None
    value = parse_value(text, f"--set {dotted}")
    where: Any = data
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        place: Any = key
        if isinstance(where, list):
            place = _place(key, len(where), dotted)
        elif not isinstance(where, dict):
            raise RecipeError(
                f"--set {dotted}: {'.'.join(keys[:depth])} is a value and has no keys inside it. "
                "Set a key of the recipe."
            )
        if last:
            where[place] = value
        elif isinstance(where, dict):
            where[place] = where.get(place) or {}
        where = where[place]
    return dotted


def _code(character: str | bytes | int) -> str:
    code = character if isinstance(character, int) else ord(character)
    return f"0x{code:02x}"


def _place(key: str, count: int, dotted: str) -> int:
    known = key.isascii() and key.isdecimal() and len(key) <= _LISTS
    if not known or int(key) >= count:
        allowed = f"Use 0 to {count - 1}" if count else "It is empty: set the whole list"
        raise RecipeError(
            f"--set {dotted}: {shown(key)} is no place in a list of {count}. {allowed}."
        )
    return int(key)


class _Loader(yaml.SafeLoader):
    """Plain YAML that refuses what would be lost in silence, or never end."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.checked: set[int] = set()

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise _problem(f"it is nested more than {DEEPEST} levels deep", mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def flatten_mapping(self, node: Any) -> None:
        lines: dict[Hashable, int] = {}
        # A merge (<<) leaves an overridden key in its node twice, so each node is checked once.
        for key, _ in node.value if id(node) not in self.checked else ():
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise _problem("a key must be a word", key.start_mark)
            if key.value in lines:
                raise _problem(
                    f"the key {shown(key.value)} stands in line {lines[key.value]} already; keep "
                    "one of them",
                    key.start_mark,
                )
            lines[key.value] = line
        self.checked.add(id(node))
        super().flatten_mapping(node)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError, AttributeError):
            kind = node.tag.rpartition(":")[2]
            text = f"{shown(node.value)} is no {kind} that can be read"
            raise _problem(text, node.start_mark) from None


def _problem(text: str, mark: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, text, mark)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _DATE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
