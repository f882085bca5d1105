"""The picture of docs/architecture.md: the packages in their layers, and what imports what.

    python -m studies architecture docs/images/architecture.svg

Layers are those of the import contract in pyproject.toml; lines are the imports in the code. One
that follows from others (a imports b, b imports c, so a may import c) is left out.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from html import escape
from pathlib import Path

import grimp
from importlinter.api import read_configuration

from studies.common import StudyError, argument_parser

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "fewstep"
SMALL = ("atomic", "errors", "lock", "pixels", "resident")  # modules that any package may import
HIDDEN = {"__main__", *SMALL}
WIDTH, BOX, HEIGHT, GAP, LAYER = 1080, 196, 58, 14, 104  # pixels

Graph = dict[str, set[str]]


def main(arguments: Sequence[str]) -> None:
    """Write the picture to the file that is named."""
    parser = argument_parser("architecture", __doc__)
    parser.add_argument("out", type=Path, help="the .svg file to write")
    out: Path = parser.parse_args(arguments).out
    if out.suffix != ".svg":
        raise StudyError(f"the picture must go into an .svg file, got {out}. Name another file.")
    out.write_text(picture(layers(), imports()), encoding="utf-8")


def layers() -> list[list[str]]:
    """Return the packages of every layer of the import contract, the highest first."""
    contracts = read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    (contract,) = (c for c in contracts if c.get("containers") == ["fewstep"])
    rows = [row.split(" | ") for row in contract["layers"]]
    return [shown for row in rows if (shown := [name for name in row if name not in HIDDEN])]


def imports() -> Graph:
    """Return package -> packages that it imports, without imports that follow from others."""
    graph = grimp.build_graph("fewstep")
    packages = sorted(graph.find_children("fewstep") - {f"fewstep.{name}" for name in HIDDEN})
    for package in packages:
        if graph.find_children(package):
            graph.squash_module(package)
    found = {
        package: graph.find_modules_directly_imported_by(package) & set(packages) - {package}
        for package in packages
    }
    return {
        package.removeprefix("fewstep."): {
            one.removeprefix("fewstep.")
            for one in direct
            if not any(one in reached(found, other) for other in direct - {one})
        }
        for package, direct in found.items()
    }


def reached(graph: Graph, start: str) -> set[str]:
    """Return all that a package imports, directly or through others."""
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        package = waiting.pop()
        if package not in seen:
            seen.add(package)
            waiting += graph[package]
    return seen


def about(name: str) -> str:
    """Return the first line of a package's docstring, up to its first punctuation mark."""
    path = SOURCE / name / "__init__.py"
    file = path if path.is_file() else SOURCE / f"{name}.py"
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    line = text.splitlines()[0] if text else ""
    return min((line.split(mark)[0] for mark in (".", ":", ";", ",")), key=len)


def picture(rows: Sequence[Sequence[str]], graph: Graph) -> str:
    """Return the picture as SVG."""
    places = {
        name: (
            (WIDTH - len(row) * (BOX + GAP) + GAP) // 2 + column * (BOX + GAP),
            10 + layer * LAYER,
        )
        for layer, row in enumerate(rows)
        for column, name in enumerate(row)
    }
    height = len(rows) * LAYER
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" role="img">',
        "<title>The packages of fewstep, and what imports what</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for name in sorted(graph):
        for other in sorted(graph[name]):
            (x0, y0), (x1, y1) = places[name], places[other]
            x0, y0, x1 = x0 + BOX // 2, y0 + HEIGHT, x1 + BOX // 2
            middle = (y0 + y1) // 2
            parts.append(
                f'<path d="M{x0} {y0} C{x0} {middle} {x1} {middle} {x1} {y1}" fill="none" '
                'stroke="#8a93a6" stroke-width="1.4"/>'
            )
    for name, (x, y) in places.items():
        parts += _box(name, x, y)
    parts.append(
        f'<text x="{WIDTH // 2}" y="{height - 12}" font-size="11" fill="#3b4a6b" '
        f'text-anchor="middle">Not drawn, for any of them may import it: {", ".join(SMALL)}</text>'
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _box(name: str, x: int, y: int) -> list[str]:
    words, lines = about(name).split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 32:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    middle = x + BOX // 2
    return [
        f'<rect x="{x}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="6" fill="#f4f6fb" '
        'stroke="#3b4a6b"/>',
        f'<text x="{middle}" y="{y + 20}" font-size="15" font-weight="600" fill="#1c2333" '
        f'text-anchor="middle">{escape(name)}</text>',
        *(
            f'<text x="{middle}" y="{y + 36 + 13 * k}" font-size="11" fill="#3b4a6b" '
            f'text-anchor="middle">{escape(line)}</text>'
            for k, line in enumerate(lines[:2])
        ),
    ]
