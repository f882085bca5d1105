"""The report's plots, as inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Row = dict[str, Any]

# Okabe and Ito's colours, told apart by colour-blind readers.
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
OTHER = "#777777"

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


def against_evaluations(rows: Sequence[Row], key: str, label: str, w: float) -> str:
    """Return `key` against network evaluations an image, both logarithmic, at one w."""
    groups: dict[str, list[Row]] = {g: [] for g in GROUPS}
    for row in rows:
        if row["w"] == w and row[key]:
            groups[_group(row)].append(row)
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
        axes.set_xlabel("network evaluations an image")
        axes.set_ylabel(f"{label}, w = {w:g}")
        axes.legend(fontsize=9)
        return svg()


def _group(row: Row) -> str:
    if row["sampler"] in SOLVER_GROUPS:
        return str(row["sampler"])
    if row["sampler"] == "stochastic":
        return "stochastic"
    return row["model"] if row["model"] in ("teacher", "stage-one") else "students"


def _plain_ticks(axes: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    low, high = axes.get_ylim()
    # Few decades: label 2 and 5 as well, or an axis may carry a single number.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1e3 else (1,)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def score_against_distance(rows: Sequence[Row], fd: str) -> str:
    """Return the curves over w: class score against Fréchet distance, one for each model."""
    curves: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        if row["w"] is not None and row["score"] is not None:
            curves.setdefault((row["model"], row["sampler"], row["steps"]), []).append(row)
    longest = max((n for m, _, n in curves if m == "teacher"), default=0)
    with _figure(6.6, 4.2) as (_, axes, svg):
        for (model, sampler, steps), members in curves.items():
            if model == "teacher" and (steps not in (longest, 4) or sampler in SOLVER_GROUPS):
                continue
            members.sort(key=lambda r: r["w"])
            dashed = sampler == "stochastic" or (model == "teacher" and steps != longest)
            axes.plot(
                [r[fd] for r in members],
                [r["score"] for r in members],
                "s--" if dashed else "o-",
                color=COLOURS.get(model, OTHER),
                label=_label(model, sampler, steps),
                markersize=4,
            )
            if model == "teacher" and steps == longest:
                for r in members:
                    at = (r[fd], r["score"])
                    axes.annotate(f"w={r['w']:g}", at, (4, -10), textcoords="offset points")
        axes.set_xlabel(f"{fd} (lower is nearer to the data)")
        axes.set_ylabel("class score (higher is surer)")
        axes.legend(fontsize=8)
        return svg()


def _label(model: str, sampler: str, steps: int) -> str:
    if model in ("teacher", "stage-one"):
        return f"{model}, {steps} steps"
    return model + (", stochastic" if sampler == "stochastic" else "")


def loss_curves(losses: dict[str, list[tuple[int, float]]]) -> str:
    """Return the training losses: as read (faint), and averaged over a twentieth of the run."""
    with _figure(6.6, 3.8) as (_, axes, svg):
        for name, points in losses.items():
            if not points:
                continue
            x, y = zip(*points, strict=True)
            colour = COLOURS.get(name, OTHER)
            axes.plot(x, y, color=colour, alpha=0.2, linewidth=0.8)
            axes.plot(x, _smooth(y, max(1, len(y) // 20)), color=colour, label=name)
        axes.set_yscale("log")
        axes.set_xlabel("update")
        axes.set_ylabel("loss (weighted squared error of v)")
        axes.legend(fontsize=8)
        return svg()


def _smooth(y: Sequence[float], half: int) -> list[float]:
    windows = [y[max(0, i - half) : i + half + 1] for i in range(len(y))]
    return [sum(window) / len(window) for window in windows]
