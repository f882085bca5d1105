"""The report's plots, as inline SVG; "" where there is nothing to plot.

A model's role (`TEACHER`, `STAGE_ONE` or a student) decides how it is drawn. Roles come with the
rows as {name: role}; a name that is not in it is its own role.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fewstep.distill.plan import STAGE_ONE, TEACHER
from fewstep.show.escape import in_plot

Row = dict[str, Any]
Roles = Mapping[str, str]

# The colours of Okabe and Ito, which colour-blind readers can tell apart.
COLOURS = {
    "teacher": "#000000",
    "stage-one": "#56B4E9",
    "student-8": "#009E73",
    "student-4": "#D55E00",
    "student-2": "#CC79A7",
    "student-1": "#E69F00",
    "students": "#D55E00",
    "stochastic": "#0072B2",
    "dpm-solver++": "#777777",
    "unipc": "#B0B0B0",
    "heun": "#F0E442",
}
OTHERS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#D55E00")

GROUPS = {
    "teacher": "guided teacher, DDIM",
    "stage-one": "stage one, DDIM",
    "students": "students, deterministic",
    "stochastic": "students, stochastic",
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
        "grid.color": "#e4e4e4",
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
    """Let the page decide the width; the viewBox keeps the proportions."""
    head, rest = svg.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", head) + ' role="img">' + rest


def _colour(name: str, roles: Roles) -> str:
    """Return the colour of a model: that of its role or name, or one by its place."""
    known = COLOURS.get(roles.get(name, name)) or COLOURS.get(name)
    if known is not None:
        return known
    others = [n for n in roles if n not in COLOURS and roles[n] not in COLOURS]
    return OTHERS[others.index(name) % len(OTHERS) if name in others else 0]


def against_evaluations(
    rows: Sequence[Row], key: str, label: str, w: float, roles: Roles | None = None
) -> str:
    """Return `key` against network evaluations per image, both logarithmic, at one w."""
    groups: dict[str, list[Row]] = {g: [] for g in GROUPS}
    for row in rows:
        if row["w"] == w and row[key] and row[key] > 0:
            groups[_group(row, roles or {})].append(row)
    if not any(groups.values()):
        return ""
    with _figure(5.6, 3.6) as (_, axes, svg):
        for group, members in groups.items():
            if not members:
                continue
            members.sort(key=lambda r: r["evaluations"])
            x, y = [r["evaluations"] for r in members], [r[key] for r in members]
            mark = "s" if group == "stochastic" else "o"
            axes.plot(x, y, f"{mark}-", color=COLOURS[group], label=GROUPS[group], markersize=4.5)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        _plain_ticks(axes)
        axes.set_xlabel("network evaluations per image")
        axes.set_ylabel(f"{in_plot(label)}, w = {w:g}")
        axes.legend(fontsize=9)
        return svg()


def _group(row: Row, roles: Roles) -> str:
    if row["sampler"] in SOLVER_GROUPS:
        return str(row["sampler"])
    if row["sampler"] == "stochastic":
        return "stochastic"
    role = roles.get(row["model"], row["model"])
    return role if role in (TEACHER, STAGE_ONE) else "students"


def _plain_ticks(axes: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    low, high = axes.get_ylim()
    # Few decades: label 2 and 5 as well, or an axis may carry a single number.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1e3 else (1,)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def score_against_distance(rows: Sequence[Row], fd: str, roles: Roles | None = None) -> str:
    """Return the curves over w: class score against Fréchet distance, one for each model."""
    roles = roles or {}
    curves: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        if row["w"] is not None and row["score"] is not None and row[fd] is not None:
            curves.setdefault((row["model"], row["sampler"], row["steps"]), []).append(row)
    if not curves:
        return ""
    longest = max((n for m, _, n in curves if roles.get(m, m) == TEACHER), default=0)
    with _figure(6.6, 4.2) as (_, axes, svg):
        for (model, sampler, steps), members in curves.items():
            teacher = roles.get(model, model) == TEACHER
            if teacher and (steps not in (longest, 4) or sampler in SOLVER_GROUPS):
                continue
            members.sort(key=lambda r: r["w"])
            dashed = sampler == "stochastic" or (teacher and steps != longest)
            axes.plot(
                [r[fd] for r in members],
                [r["score"] for r in members],
                "s--" if dashed else "o-",
                color=_colour(model, roles),
                label=in_plot(_label(model, sampler, steps, roles)),
                markersize=4,
            )
            if teacher and steps == longest:
                for r in members:
                    at = (r[fd], r["score"])
                    axes.annotate(f"w={r['w']:g}", at, (4, -10), textcoords="offset points")
        axes.set_xlabel(f"{in_plot(fd)} (lower is nearer to the data)")
        axes.set_ylabel("class score (higher is more certain)")
        axes.legend(fontsize=8)
        return svg()


def _label(model: str, sampler: str, steps: int, roles: Roles) -> str:
    if roles.get(model, model) in (TEACHER, STAGE_ONE):
        return f"{model}, {steps} steps"
    return model + (", stochastic" if sampler == "stochastic" else "")


def loss_curves(losses: dict[str, list[tuple[int, float]]], roles: Roles | None = None) -> str:
    """Return the training losses: as read (faint), and averaged over a twentieth of the run."""
    if not any(losses.values()):
        return ""
    with _figure(6.6, 3.8) as (_, axes, svg):
        for name, points in losses.items():
            if not points:
                continue
            x, y = zip(*points, strict=True)
            colour = _colour(name, roles or {})
            axes.plot(x, y, color=colour, alpha=0.2, linewidth=0.8)
            smooth = _smooth(y, max(1, len(y) // 20))
            axes.plot(x, smooth, color=colour, label=in_plot(name))
        axes.set_yscale("log")
        axes.set_xlabel("update")
        axes.set_ylabel("loss (weighted squared error of v)")
        axes.legend(fontsize=8)
        return svg()


def _smooth(y: Sequence[float], half: int) -> list[float]:
    windows = [y[max(0, i - half) : i + half + 1] for i in range(len(y))]
    return [sum(window) / len(window) for window in windows]
