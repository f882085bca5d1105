"""Names and texts of users, escaped for every place that they are written to.

Names of stages, models, classes and features come from recipes, cards and folders that somebody
else may have made. Each format has one function here, and everything that is written goes through
it.
"""

from __future__ import annotations

import html
import re
import unicodedata

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
_MARKDOWN = re.compile(r"([\\`*\[\]|~!#]|(?<![^\W_])_|_(?![^\W_]))")


def printable(value: object) -> str:
    """Return the text on one line, without characters that control a terminal or a page."""
    return "".join(c if c.isprintable() else _replacement(c) for c in str(value))


def _replacement(character: str) -> str:
    space = character in "\t\n\r\v\f" or unicodedata.category(character).startswith("Z")
    return " " if space else "\N{REPLACEMENT CHARACTER}"


def in_html(value: object) -> str:
    """Return the text for HTML, inside or outside an attribute's quotes."""
    return html.escape(printable(value), quote=True)


def in_markdown(value: object) -> str:
    """Return the text for a cell of a Markdown table or a paragraph: no markup, no HTML."""
    text = _MARKDOWN.sub(r"\\\1", printable(value))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def in_csv(value: str) -> str:
    """Return the text for a field of a CSV file, which no spreadsheet reads as a formula.

    A text that begins like a formula gets an apostrophe in front (OWASP, "CSV injection").
    """
    text = printable(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def in_plot(value: object) -> str:
    """Return the text for a label of a plot; matplotlib drops labels that begin with "_"."""
    text = printable(value)
    return f" {text}" if text.startswith("_") else text
