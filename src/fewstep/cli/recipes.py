"""`fewstep recipes`: the recipes that come with fewstep."""

from __future__ import annotations

from pathlib import Path

import typer

FOLDER = Path(__file__).parents[1] / "recipes"


def names_of(incomplete: str = "") -> list[str]:
    """Return the names of the built-in recipes that begin with a text; for shell completion."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml") if p.stem.startswith(incomplete))


def recipes_command() -> None:
    """List the built-in recipes, one per line."""
    import yaml

    names = names_of()
    width = max(map(len, names))
    for name in names:
        about = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))["about"]
        typer.echo(f"{name:<{width}}  {about.split('. ')[0].rstrip('.')}")


command = recipes_command
