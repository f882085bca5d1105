"""Typeset formulas as MathML while the site is built: pages need no script and no network."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace the formulas that pymdownx.arithmatex found in a page (an event of MkDocs)."""
    return FORMULA.sub(_typeset, content)


def _typeset(found: re.Match[str]) -> str:
    latex = html.unescape(found[2]).strip()
    if found[1] == "span":
        return convert(latex[2:-2].strip(), display="inline")
    # On a narrow screen a long formula is scrolled, and not the whole page.
    formula = convert(latex[2:-2].strip(), display="block")
    return f'<div style="overflow-x: auto; overflow-y: hidden">{formula}</div>'
