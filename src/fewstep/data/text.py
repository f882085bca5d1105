"""Text files of the user's: UTF-8, or UTF-16 and UTF-32 with a byte order mark."""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path

from fewstep.errors import DataError, in_units

LARGEST = 1 << 28  # bytes
_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path | str, largest: int = LARGEST) -> str:
    """Return the text of a file, without its byte order mark.

    Raises DataError: no such file, more than `largest` bytes, or in another encoding, naming the
    byte.
    """
    path = Path(path)
    try:
        if not path.is_file():
            reason = "it is not a file" if path.exists() else "there is no such file"
            raise DataError(f"{path} cannot be read as text: {reason}.")
        if os.path.getsize(path) > largest:
            raise DataError(
                f"{path} cannot be read as text: it is larger than {in_units(largest)}."
            )
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise DataError(f"{path} cannot be read as text: {reason}.") from None
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} cannot be read as text: it must be UTF-8, or UTF-16 with a byte order mark, "
            f"and byte {error.start} ({data[error.start]:#04x}) is neither. Save it as UTF-8."
        ) from None
    if "\0" in text:
        raise DataError(
            f"{path} cannot be read as text: it has zero bytes in it. Save it as UTF-8, or as "
            "UTF-16 with a byte order mark."
        )
    return text


def lines_of(text: str) -> list[str]:
    """Return the lines of a text that hold something, without the white space around them."""
    return [line.strip() for line in re.split(r"\r\n|\n|\r", text) if line.strip()]


def read_prompts(path: Path | str) -> list[str]:
    """Return the prompts of a file with one prompt per line; empty lines are left out.

    Raises DataError as `read_text` does, and for a file without a prompt.
    """
    prompts = lines_of(read_text(path))
    if not prompts:
        raise DataError(f"{path} is empty. Give a file with one prompt per line.")
    return prompts
