"""The classes that a user names: by name, by number, by range, or `any`. Each means one thing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from fewstep.cli.options import RANGE, bounds
from fewstep.errors import RangeError, did_you_mean

ANY = "any"
Key = TypeVar("Key")


def class_ids(text: str, names: Sequence[str], option: str = "--cond") -> list[int]:
    """Return the ids of "cat,dog" or "0,5-9". Raises RangeError as `Classes.ids` does."""
    return Classes(tuple(names), len(names)).ids(text, option)


@dataclass(frozen=True)
class Classes:
    """The classes of a model, and how they may be written.

    A name always wins, also one that holds commas ("tench, Tinca tinca"). Where names are whole
    numbers ("2", "007"), a number or a range means the classes of these names. Where no name is a
    number, it means class ids. One of several names of a class ("tench") is enough where no other
    class has it. `any` is the null condition.

    Attributes:
        names: of the classes in the order of their ids; () where they have none.
        count: number of classes.
        null: id of the null condition; None where `any` is not allowed.
    """

    names: tuple[str, ...]
    count: int
    null: int | None = None

    def ids(self, text: str, option: str) -> list[int]:
        """Return the class ids of a list with commas.

        Raises RangeError: a class that the model does not have, a name that several classes have,
        or a range that falls.
        """
        parts, missing = [part.strip() for part in text.split(",")], []
        out: list[int] = []
        at = 0
        while at < len(parts):
            end = self._end_of_name(parts, at)
            if end:
                found: list[int] | None = self._only(self._by_name[_joined(parts[at:end])])
            else:
                found, end = self._one(parts[at], option), at + 1
            if found is None:
                missing.append(parts[at])
            out.extend(found or ())
            at = end
        if missing:
            raise self._unknown(text, missing, option)
        return out

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        return _index((_joined(name.split(",")), k) for k, name in enumerate(self.names))

    @cached_property
    def _by_number(self) -> dict[int, list[int]]:
        named = enumerate(self.names)
        return _index((int(name), k) for k, name in named if re.fullmatch(r"[0-9]{1,18}", name))

    @cached_property
    def _by_synonym(self) -> dict[str, list[int]]:
        each = ((part.strip(), k) for k, name in enumerate(self.names) for part in name.split(","))
        return _index(each)

    @cached_property
    def _longest(self) -> int:
        return max((name.count(",") + 1 for name in self.names), default=1)

    def _end_of_name(self, parts: list[str], at: int) -> int | None:
        """Return where the longest class name that begins at a part ends; None where none does."""
        ends = range(min(len(parts), at + self._longest), at, -1)
        return next((end for end in ends if _joined(parts[at:end]) in self._by_name), None)

    def _one(self, part: str, option: str) -> list[int] | None:
        """Return the ids of a part that is no class name; None where there are none."""
        if part == ANY and self.null is not None:
            return [self.null]
        found = RANGE.fullmatch(part)
        if found is None:
            return self._only(self._by_synonym[part]) if part in self._by_synonym else None
        first, last = bounds(found, option)
        if not self._by_number:
            return list(range(first, last + 1)) if last < self.count else None
        if first not in self._by_number or last not in self._by_number:
            return None
        values = [v for v in sorted(self._by_number) if first <= v <= last]
        return [k for v in values for k in self._only(self._by_number[v])]

    def _only(self, ids: list[int]) -> list[int]:
        if len(ids) > 1:
            advice = "Rename them" if self._by_number else "Pass the number"
            raise RangeError(
                f"a class must be named by one name of its own, got {self.names[ids[0]]!r}, which "
                f"names the classes number {' and '.join(map(str, ids))}. {advice}."
            )
        return ids

    def _unknown(self, text: str, missing: list[str], option: str) -> RangeError:
        words = [part for part in missing if not RANGE.fullmatch(part)]
        hint = did_you_mean(words[0], self.names) if words else ""
        shown = [repr(part) if part in words else part for part in missing]
        few = [*shown[:10], *(["..."] if len(shown) > 10 else [])]
        also = f", or {ANY} for no particular class" if self.null is not None else ""
        return RangeError(
            f"{option} must name classes of this model, got {text[:200]!r}: it has no class "
            f"{', no class '.join(few)}.{hint} Its classes are {self._listed()}. Pass names, or "
            f"whole numbers and ranges such as 0,2-4{also}."
        )

    def _listed(self) -> str:
        if list(self.names) in ([], [str(k) for k in range(self.count)]):
            return f"0 to {self.count - 1}"
        # Quoted where a comma would read as two classes.
        shown = [repr(name) if "," in name else name for name in self.names[:10]]
        return ", ".join(shown) + (", ..." if len(self.names) > 10 else "")


def _joined(parts: Iterable[str]) -> str:
    return ", ".join(part.strip() for part in parts)


def _index(items: Iterable[tuple[Key, int]]) -> dict[Key, list[int]]:
    out: dict[Key, list[int]] = {}
    for key, value in items:
        if value not in out.setdefault(key, []):
            out[key].append(value)
    return out
