"""What the studies share: arguments, reading JSON, Markdown tables, and where the pages are."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError
from fewstep.measure.evaluate import Evaluation
from fewstep.recipes.config import Recipe

DOCS = Path(__file__).parents[1] / "docs"


class StudyError(FewstepError):
    """A study cannot use what it was given."""


def argument_parser(name: str, doc: str) -> argparse.ArgumentParser:
    """Return the parser of one study, with the study's docstring as the help text."""
    return argparse.ArgumentParser(
        prog=f"python -m studies {name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises StudyError if it is missing or not JSON."""
    if not path.is_file():
        raise StudyError(
            f"a study reads a JSON file that an earlier command wrote; {path} is not a file. "
            "Run that command first, or correct the path."
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(
            f"a study reads a JSON file that an earlier command wrote; {path} is not JSON "
            f"({error}). Run that command again."
        ) from None


def evaluation_of(recipe: Recipe, folder: Path, device: str = "cpu") -> Evaluation:
    """Return how a recipe's cells are measured, with results kept in `folder`; it prints each."""
    settings = recipe.evaluate
    return Evaluation(
        recipe.data,
        folder,
        settings.samples,
        recipe.seed,
        settings.batch_size,
        None if settings.features is None else Path(settings.features),
        device,
        say=lambda line: print(line, flush=True),
    )


def markdown(
    head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()
) -> str:
    """Return a Markdown table. numbers: the columns, counted from 0, that align to the right."""
    right = set(numbers)
    rule = ["---:" if k in right else "---" for k in range(len(head))]
    return "\n".join(_row(cells) for cells in (head, rule, *rows))


def _row(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def joined(ws: Iterable[float], separator: str = ", ") -> str:
    """Return numbers in a row, as short as they can be: "0, 1, 2.5"."""
    return separator.join(f"{w:g}" for w in ws)


def facts_line(facts: Mapping[str, str]) -> str:
    """Return the facts of a report (device, versions, ...) in one line."""
    return "; ".join(f"{name} {value}" for name, value in facts.items())
