"""Captions of images: a template a caption, with the class name or the image's own text in it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fewstep.data.augment import uniform

_VOWELS = tuple("aeiou")


def caption(template: str, name: str) -> str:
    """Return the template with the name in place of {}, and "an" before a vowel.

    Names of classes are often identifiers: underscores become spaces.
    """
    word = name.replace("_", " ")
    before, _, after = template.partition("{}")
    if before.endswith(" a ") or before == "a ":
        before = before[:-1] + ("n " if word.lower().startswith(_VOWELS) else " ")
    return f"{before}{word}{after}"


def captions_of(templates: Sequence[str], names: Sequence[str], index: Tensor) -> list[str]:
    """Return the caption of each example: one of the templates, by a hash of its number.

    names: of each example. index: (B,) numbers of the examples.
    """
    which = (uniform(0, "caption", index) * len(templates)).long().clamp_max(len(templates) - 1)
    return [caption(templates[t], n) for t, n in zip(which.tolist(), names, strict=True)]


def check_templates(templates: Sequence[str]) -> None:
    """Raise ValueError unless each has exactly one {}."""
    wrong = [t for t in templates if t.count("{}") != 1]
    if wrong:
        raise ValueError(f"{wrong[0]!r} must have one {{}}, where the name of the class goes")
