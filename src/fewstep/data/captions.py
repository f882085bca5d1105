"""Prompts of images: a template with the image's caption, or the name of its class, in it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fewstep.data.augment import uniform

_VOWELS = tuple("aeiou")


def words(name: str) -> str:
    """Return the name of a class as text: such names are often identifiers, great_grey_owl."""
    return name.replace("_", " ")


def texts_of(class_names: Sequence[str], captions: bool) -> tuple[str, ...]:
    """Return what stands in the prompts of each class: its name in words, or its caption."""
    return tuple(class_names) if captions else tuple(map(words, class_names))


def fill(template: str, text: str) -> str:
    """Return the template with a text in place of {}, as it is written; "an" before a vowel."""
    before, _, after = template.partition("{}")
    if before.endswith(" a ") or before == "a ":
        before = before[:-1] + ("n " if text.lower().startswith(_VOWELS) else " ")
    return f"{before}{text}{after}"


def caption(template: str, name: str) -> str:
    """Return the template with the name of a class in place of {}: underscores become spaces."""
    return fill(template, words(name))


def captions_of(templates: Sequence[str], texts: Sequence[str], index: Tensor) -> list[str]:
    """Return the prompt of each example: one of the templates, by a hash of its number.

    texts: of each example, as they are written; `Dataset.class_texts` of its class id. index: (B,)
    numbers of the examples.
    """
    which = (uniform(0, "caption", index) * len(templates)).long().clamp_max(len(templates) - 1)
    return [fill(templates[t], text) for t, text in zip(which.tolist(), texts, strict=True)]


def check_templates(templates: Sequence[str]) -> None:
    """Raise ValueError unless each has exactly one {}."""
    wrong = [t for t in templates if t.count("{}") != 1]
    if wrong:
        raise ValueError(
            f"{wrong[0]!r} must have one {{}}, where the caption of the image or the name of its "
            "class goes; a column of captions is named by data.caption"
        )
