"""The report's plots, as inline SVG; "" where there is nothing to plot.

A model's role (`TEACHER`, `STAGE_ONE` or a student) decides how it is drawn. Roles come with the
cells as {name: role}; a name that is not in it is its own role.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fewstep.distill.plan import STAGE_ONE, TEACHER
from fewstep.measure.cell import CONSISTENCY, NOISY, STOCHASTIC, Cell, Cells, Line
from fewstep.show.escape import in_plot

Roles = Mapping[str, str]

INK = "#000000"  # drawn in the colour of the page's text
# The colours of Okabe and Ito, which colour-blind readers can tell apart.
COLOURS = {
    "teacher": INK,
    "stage-one": "#56B4E9",
    "student-8": "#009E73",
    "student-4": "#D55E00",
    "student-2": "#CC79A7",
    "student-1": "#E69F00",
    "students": "#D55E00",
    "stochastic": "#0072B2",
    "consistency": "#A6761D",
    "dpm-solver++": "#777777",
    "unipc": "#8B6BB1",
    "heun": "#F0E442",
}
OTHERS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#D55E00")

GROUPS = {
    "teacher": "guided teacher, DDIM",
    "stage-one": "stage one, DDIM",
    "students": "students, deterministic",
    "stochastic": "students, stochastic",
    "consistency": "consistency students",
    "dpm-solver++": "guided teacher, DPM-Solver++",
    "unipc": "guided teacher, UniPC",
    "heun": "guided teacher, Heun",
}
SOLVER_GROUPS = ("dpm-solver++", "unipc", "heun")


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Any, Any, Callable[[], str]]]:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "fewstep",
        "text.parse_math": False,  # a "$" in a name is a "$"
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#808080",
        "grid.alpha": 0.25,
        "legend.frameon": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()

        def svg() -> str:
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
            text = buffer.getvalue()
            return _scalable(text[text.index("<svg") :])

        yield figure, axes, svg


def _scalable(svg: str) -> str:
    """Let the page decide the width and the ink; the viewBox keeps the proportions."""
    head, rest = svg.replace(INK, "currentColor").split(">", 1)
    head += ' fill="currentColor"'
    return re.sub(r' (width|height)="[^"]*"', "", head) + ' role="img">' + rest


def _colour(name: str, roles: Roles) -> str:
    """Return the colour of a model: that of its role or name, or one by its place."""
    known = COLOURS.get(roles.get(name, name)) or COLOURS.get(name)
    if known is not None:
        return known
    others = [n for n in roles if n not in COLOURS and roles[n] not in COLOURS]
    return OTHERS[others.index(name) % len(OTHERS) if name in others else 0]


def against_evaluations(
    cells: Cells, figure: str, label: str, w: float, roles: Roles | None = None
) -> str:
    """Return a figure against network evaluations per image, both logarithmic, at one w.

    figure: its name in the tables. label: what the axis calls it.
    """
    groups: dict[str, list[tuple[int, float]]] = {g: [] for g in GROUPS}
    for cell in cells.at_w(w):
        value = cell.figures.by_name[figure]
        if value and value > 0:
            groups[_group(cell, roles or {})].append((cell.evaluations, value))
    if not any(groups.values()):
        return ""
    with _figure(5.6, 3.6) as (_, axes, svg):
        for group, points in groups.items():
            if not points:
                continue
            x, y = zip(*sorted(points, key=lambda point: point[0]), strict=True)
            mark = "s" if group in NOISY else "o"
            axes.plot(x, y, f"{mark}-", color=COLOURS[group], label=GROUPS[group], markersize=4.5)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:.0f}")
        _ticks_of_logarithms(axes)
        axes.set_xlabel("network evaluations per image")
        axes.set_ylabel(f"{in_plot(label)}, w = {w:g}")
        axes.legend(fontsize=9)
        return svg()


def _group(cell: Cell, roles: Roles) -> str:
    sampler = cell.line.sampler
    if sampler in GROUPS:
        return sampler
    role = roles.get(cell.model, cell.model)
    return role if role in (TEACHER, STAGE_ONE) else "students"


def _ticks_of_logarithms(axes: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = axes.get_ylim()
    # Few decades: label 2 and 5 as well, or an axis may carry a single number.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1e3 else (1,)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def score_against_distance(cells: Cells, roles: Roles | None = None) -> str:
    """Return the curves over w: class score against Fréchet distance, one for each line."""
    roles = roles or {}
    known = Cells(c for c in cells.drawn if None not in (c.figures.score, c.figures.fd))
    if not known.lines:
        return ""
    teachers = [line for line in known.lines if roles.get(line.model, line.model) == TEACHER]
    longest = max((line.steps for line in teachers), default=0)
    with _figure(5.6, 4.0) as (_, axes, svg):
        for line in known.lines:
            teacher, long = line in teachers, line.steps == longest
            if teacher and not (long or (line.steps == 4 and line.sampler not in SOLVER_GROUPS)):
                continue
            curve = sorted(known.of(line), key=lambda cell: cell.w or 0.0)
            points = [(cell.figures.fd, cell.figures.score) for cell in curve]
            dashed = line.sampler == STOCHASTIC or (teacher and not long)
            axes.plot(
                *zip(*points, strict=True),
                "s--" if dashed else "o-",
                color=_colour(line.model, roles),
                label=in_plot(_label(line, roles)),
                markersize=4,
            )
            if teacher and long:
                for cell, at in zip(curve, points, strict=True):
                    axes.annotate(f"w={cell.w:g}", at, (4, -10), textcoords="offset points")
        axes.set_xlabel(f"{in_plot(cells.fd_name)} (lower is nearer to the data)")
        axes.set_ylabel("class score (higher is more certain)")
        axes.legend(fontsize=8)
        return svg()


def _label(line: Line, roles: Roles) -> str:
    if roles.get(line.model, line.model) in (TEACHER, STAGE_ONE):
        solver = f"{line.sampler}, " if line.sampler in SOLVER_GROUPS else ""
        return f"{line.model}, {solver}{line.steps} steps"
    if line.sampler == CONSISTENCY:
        return f"{line.model}, {line.steps} steps"
    return line.model + (", stochastic" if line.sampler == STOCHASTIC else "")


def loss_curves(losses: dict[str, list[tuple[int, float]]], roles: Roles | None = None) -> str:
    """Return the training losses: as read (faint), and averaged over a twentieth of the run."""
    if not any(losses.values()):
        return ""
    with _figure(5.6, 3.6) as (_, axes, svg):
        for name, points in losses.items():
            if not points:
                continue
            x, y = zip(*points, strict=True)
            colour = _colour(name, roles or {})
            axes.plot(x, y, color=colour, alpha=0.2, linewidth=0.8)
            smooth = _smooth(y, max(1, len(y) // 20))
            axes.plot(x, smooth, color=colour, label=in_plot(name))
        axes.set_yscale("log")
        _ticks_of_logarithms(axes)
        axes.set_xlabel("update")
        axes.set_ylabel("loss (weighted squared error of v)")
        axes.legend(fontsize=8)
        return svg()


def _smooth(y: Sequence[float], half: int) -> list[float]:
    windows = [y[max(0, i - half) : i + half + 1] for i in range(len(y))]
    return [sum(window) / len(window) for window in windows]
