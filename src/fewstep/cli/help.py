"""The help pages of the commands: values are named in capitals, and ranges read "1 to 64"."""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.core import TyperCommand

# typer's name of a type -> the word for the value in a help page.
VALUES = {"path": "PATH", "list[Path]": "PATH", "str": "TEXT", "list[str]": "TEXT"}
_TYPE = re.compile(r"<([^<>]+)>$|\b(?:INTEGER|FLOAT)(?: RANGE)?$")  # the latter: typer < 0.29
_RANGE = re.compile(r"(-?[\d.]+)<=x<=(-?[\d.]+)")
_SEED = re.compile(r"; -\d{19} to \d{19}")  # every number of 64 bits: not worth a line


class Command(TyperCommand):
    """A command whose help shows RECIPE for the argument `recipe`, and NUMBER for a number."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        """Name the arguments by their own names in capitals."""
        super().__init__(*args, **settings)
        for param in self.params:
            if param.param_type_name == "argument" and param.metavar is None:
                name = str(param.name).upper()
                param.metavar = name.removesuffix("S") if param.nargs == -1 else name

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Return the parts of the usage line, required arguments without braces."""
        return [
            piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)
        ]

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the lists of arguments and options."""
        sections: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                sections[param.param_type_name].append(_readable(*record))
        for kind, records in sections.items():
            if records:
                with formatter.section(f"{kind.capitalize()}s"):
                    formatter.write_dl(records)


def _readable(name: str, text: str) -> tuple[str, str]:
    name = _TYPE.sub(lambda found: VALUES.get(found[1], "NUMBER"), name)
    return name, _SEED.sub("", _RANGE.sub(r"\1 to \2", text))
