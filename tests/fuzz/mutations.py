"""Random changes of recipes, settings, cards, model folders and data folders.

A change is a small value that hypothesis draws and shrinks; it says where by a number, which is
taken modulo the number of places that are there.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.atomic import sha256

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 1.5, -0.0, 1e-300, 1e308, 10**9, 2**63, 10**40),
    *(math.nan, math.inf, -math.inf, "", " ", "a", "0", "nan", "1e3", "é", "a\nb", "a\x00b"),
    *("x" * 5000, "<script>alert(1)</script>", "{}", "{0.__class__}", "%s", "a/b", "../x", ".."),
    *(".", "/", "/nowhere/x", "~", "training", "evaluation", "recipe.yaml", "teacher", "\udcff"),
    *("stage-one", "cuda", "meta", "digits", "epsilon", "float16", "DDIMScheduler", "null"),
    *([], [[]], [1], [0, 4], [4, 0], [1, 2, 3], [math.nan, 1], ["a"], [None], {}, {"a": 1}),
)
TEXTS = (
    *("", " ", "\n", "\t", ":", "- ", "#", "'", '"', "{", "}", "[", "]", "&a ", "*a", "<<: "),
    *("\x00", "\ufeff", "é", "\u2028", "0", "1e999", ".nan", ".inf", "---\n", "null", "a: 1\n"),
    "!!python/x ",
)
place = st.integers(0, 999)


@dataclass(frozen=True)
class Value:
    """Change a value of JSON or YAML: replace it, leave it out, or add something beside it."""

    at: int
    how: str
    odd: Any

    def apply(self, document: Any) -> Any:
        places = list(_places(document))
        if not places:
            return self.odd
        container, key = places[self.at % len(places)]
        if self.how == "replace":
            container[key] = self.odd
        elif self.how == "remove":
            del container[key]
        elif isinstance(container, list):
            container.insert(key, self.odd)
        elif self.how == "rename":
            container[f"{key}x"] = container.pop(key)
        else:
            container[str(self.odd)] = self.odd
        return document


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    keys = document if isinstance(document, dict) else range(len(document))
    for key in list(keys):
        yield document, key
        if isinstance(document[key], dict | list):
            yield from _places(document[key])


values = st.builds(
    Value, place, st.sampled_from(("replace", "replace", "remove", "add", "rename")),
    st.sampled_from(ODD),
)  # fmt: skip


@dataclass(frozen=True)
class Text:
    """Change text: put something in, take something out, repeat a line, or encode it otherwise."""

    at: int
    how: str
    text: str

    def apply(self, data: bytes) -> bytes:
        at = self.at * len(data) // 1000
        if self.how == "insert":
            return data[:at] + self.text.encode("utf-8", "surrogatepass") + data[at:]
        if self.how == "take":
            return data[:at] + data[at + 1 + self.at % 7 :]
        if self.how == "cut":
            return data[:at]
        if self.how == "repeat":
            lines = data.splitlines(keepends=True) or [b""]
            line = self.at % len(lines)
            return b"".join([*lines[: line + 1], *lines[line:]])
        if self.how == "byte":
            return data[:at] + bytes([self.at % 256]) + data[at + 1 :]
        return data.decode("utf-8", "replace").encode(self.how)


texts = st.builds(
    Text, place,
    st.sampled_from(("insert", "take", "cut", "repeat", "byte", "utf-16", "utf-32", "utf-8-sig")),
    st.sampled_from(TEXTS),
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """`--set`: a key of a recipe, or nearly one, and a value or text that is nearly one."""

    at: int
    key: str
    value: Any

    def text(self, recipe: dict[str, Any]) -> str:
        keys = list(_dotted(recipe))
        dotted = keys[self.at % len(keys)]
        dotted = re.sub(r"\.\d+(?=\.|$)", lambda m: f".{self.at % 3}", dotted)
        given = self.key.format(dotted)
        if isinstance(self.value, str):
            return f"{given}={self.value}".replace("\x00", "")  # which no shell can pass
        flow = yaml.safe_dump(self.value, default_flow_style=True, width=10**6)
        return f"{given}={flow.removesuffix('...' + chr(10)).strip()}".replace("\x00", "")


def _dotted(document: Any, prefix: str = "") -> Iterator[str]:
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        yield f"{prefix}{key}"
        if isinstance(value, dict | list):
            yield from _dotted(value, f"{prefix}{key}.")


KEYS = (*["{}"] * 4, "{}.x", "{}x", ".{}", "{}.", " {} ", "{}.0", "{}=")
YAML = (
    *("a # b", "a: b", "a:", "- a", "[", "{a", "*a", "&a b", "|", "!!set {a}", "~", "1,000"),
    *("0x10", "0b1", "1_000", "12:30", "2020-01-01", "=", "yes", "a,b"),
)
settings_of = st.builds(
    Setting, place, st.sampled_from(KEYS), st.one_of(st.sampled_from(ODD), st.sampled_from(YAML))
)


@dataclass(frozen=True)
class File:
    """Damage a file of a folder."""

    at: int
    how: str
    byte: int

    def apply(self, folder: Path) -> None:
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        if not files:
            return
        path = files[self.at % len(files)]
        data, other = path.read_bytes(), files[self.byte % len(files)].read_bytes()
        path.unlink()
        if self.how == "folder":
            path.mkdir()
        elif self.how == "link":
            path.symlink_to(folder.parent / "nothing")
        elif self.how == "loop":
            path.symlink_to(path)
        elif self.how == "pickle":
            path.with_suffix(".bin").write_bytes(pickle.dumps(Bomb(folder.parent / "exploded")))
        elif self.how != "remove":
            path.write_bytes(self._damaged(data, other))

    def _damaged(self, data: bytes, other: bytes) -> bytes:
        where = self.byte * len(data) // 1000
        if self.how == "flip":
            return data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :] if data else b"x"
        if self.how == "cut":
            return data[:where]
        return data + b"\x00x\n" if self.how == "append" else other


DAMAGE = (
    *("flip", "flip", "cut", "cut", "remove", "append", "swap", "folder", "link", "loop"),
    "pickle",
)
files = st.builds(File, place, st.sampled_from(DAMAGE), st.integers(0, 999))


class Bomb:
    """A pickle of this makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


@dataclass(frozen=True)
class Tensors:
    """Change a tensor of a safetensors file. signed: the card is given the new hash."""

    at: int
    how: str
    signed: bool

    def apply(self, path: Path) -> None:
        tensors = load_file(path)
        names = sorted(tensors)
        name = names[self.at % len(names)]
        value = tensors.pop(name)
        if self.how == "rename":
            tensors[name + "x"] = value
        elif self.how == "add":
            tensors |= {name: value, "stray.weight": value.clone()}
        elif self.how != "drop":
            tensors[name] = _changed(value, self.how)
        save_file(tensors, path, {"format": "pt"})


def _changed(value: Tensor, how: str) -> Tensor:
    if how == "axis":
        return value[None].clone()
    if how == "longer":
        return torch.cat([value, value])
    if how == "empty":
        return value[:0].clone()
    if how == "int":
        return value.to(torch.int64)
    if how == "half":
        return value.half()
    value = value.clone()
    value.flatten()[0] = {"nan": math.nan, "inf": math.inf, "huge": 1e30}[how]
    return value


WRONG = ("drop", "rename", "add", "axis", "longer", "empty", "nan", "inf")  # never to be accepted
tensors = st.builds(
    Tensors, place, st.sampled_from((*WRONG, "int", "half", "huge")), st.booleans()
)  # fmt: skip


def change_text(path: Path, change: Value | Text) -> None:
    """Change a JSON or YAML file by its values or its text."""
    if isinstance(change, Text):
        path.write_bytes(change.apply(path.read_bytes()))
    elif path.suffix == ".json":
        path.write_text(json.dumps(change.apply(json.loads(path.read_text()))))
    else:
        text = yaml.safe_dump(change.apply(yaml.safe_load(path.read_text())))
        path.write_bytes(text.encode("utf-8", "surrogatepass"))


def sign(folder: Path, weights: Path) -> None:
    """Write the hash of changed weights into the card, as if they were its own."""
    card = folder / "fewstep.json"
    if card.is_file():
        data = json.loads(card.read_text())
        card.write_text(json.dumps({**data, "weights_sha256": sha256(weights)}))
