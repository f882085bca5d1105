"""Make and measure the plans of docs/lab/cost-to-quality.md.

    python -m studies cost_to_quality make runs/digits --out runs/study-cost
    python -m studies cost_to_quality make runs/digits --out runs/study-cost --plans none-8
    python -m studies cost_to_quality write runs/study-cost

`make` takes the teacher, the model of stage one and the many-step cells from a finished
`fewstep report digits`. Every plan ends at four steps. The same command continues where it stopped.
`write` writes the page's CSV and plot from the plans that are finished, and prints its table.
"""

from __future__ import annotations

import io
import json
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from fewstep.atomic import atomic_write
from fewstep.distill.plan import STAGE_ONE, TEACHER
from fewstep.measure.evaluate import Evaluation
from fewstep.recipes.config import Recipe, load_recipe
from fewstep.recipes.run import Run
from fewstep.show.tables import comma_separated
from studies.cells import RMS, Cells, at, cells_of, figure
from studies.common import DOCS, StudyError, argument_parser, joined, markdown, read_json
from studies.cost_to_quality_plans import BROUGHT, PLANS

W = (0.0, 1.0, 4.0)
REFERENCE_STEPS = 256
FD = "fd_digits"
FIGURES = (FD, RMS, "recall", "variance")
ROWS = "figures.json"


def main(arguments: Sequence[str]) -> None:
    """Make plans, or write the table and plot of those that are made."""
    parser = argument_parser("cost_to_quality", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="train and measure plans")
    making.add_argument("demo", type=Path, help="the folder of a finished `fewstep report digits`")
    making.add_argument("--out", type=Path, required=True, help="where the plans are kept")
    making.add_argument("--plans", nargs="+", default=list(PLANS), choices=list(PLANS))
    making.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default 0 1 2")
    making.add_argument("--recipe", default="digits", help="all but the plan; default digits")
    making.add_argument("--samples", type=int, default=2000, help="per cell; default 2000")
    writing = commands.add_parser("write", help="write the CSV and the plot, print the table")
    writing.add_argument("out", type=Path, help="the --out of `make`")
    writing.add_argument("--recipe", default="digits", help="as in `make`")
    writing.add_argument("--docs", type=Path, default=DOCS, help="folder of the pages")
    given = parser.parse_args(arguments)
    recipe = load_recipe(given.recipe)
    if given.command == "make":
        make(given.demo, given.out, recipe, given.plans, given.seeds, given.samples)
    else:
        write(given.out, recipe, given.docs)


def make(
    demo: Path,
    out: Path,
    recipe: Recipe,
    names: Sequence[str],
    seeds: Sequence[int],
    samples: int,
) -> None:
    """Make and measure plans one after the other; what is finished is not made again."""
    if not (out / "evaluation").exists():
        shutil.copytree(demo / "evaluation", out / "evaluation")
    evaluation = Evaluation(recipe.data, out / "evaluation", samples=samples, seed=0, say=_say)
    for name in names:
        for seed in seeds:
            _say(f"{name}, seed {seed}")
            run = _train(name, demo, out, recipe, seed)
            atomic_write(run.out / ROWS, json.dumps(_measure(run, evaluation)).encode())


def _train(name: str, demo: Path, out: Path, recipe: Recipe, seed: int) -> Run:
    entry, folder = PLANS[name], out / name / f"seed-{seed}"
    run = Run(entry.recipe(recipe, seed), folder, "cpu", _say, progress=False)
    run.prepare()
    for model, place in BROUGHT.get((name, seed), {}).items():
        if (demo.parent / place).is_dir() and not run.workspace.is_done(model):
            shutil.copytree(demo.parent / place, run.folder(model))
    run.use_teacher(demo / TEACHER)
    if entry.shares is not None:
        other = demo if entry.shares == "demo" else out / entry.shares / f"seed-{seed}"
        run.use_teacher(other / STAGE_ONE)
    for stage in run.plan:
        run.distill(stage)
    return run


def _measure(run: Run, evaluation: Evaluation) -> list[dict[str, Any]]:
    teacher, student = run.load(TEACHER), run.load("student-4")
    rows = []
    for w in W:
        reference = evaluation.cell(TEACHER, teacher, w=w, steps=REFERENCE_STEPS)
        name = f"{run.out.parent.name}/{run.out.name}"
        rows.append(evaluation.cell(name, student, w=w, teacher=reference).row)
    return rows


def _say(line: str) -> None:
    print(line, flush=True)


@dataclass(frozen=True)
class Measured:
    """What is finished of one plan.

    Attributes:
        name: of the plan.
        evaluations: what its training costs.
        seeds: seed -> its cells, one for each of `W`.
    """

    name: str
    evaluations: int
    seeds: dict[int, Cells]

    def figures(self, key: str, w: float) -> list[float]:
        """Return a figure at w, one per seed."""
        return [figure(at(cells, cells.lines[0], w), key) for cells in self.seeds.values()]

    def text(self, key: str, digits: int, ws: Sequence[float] = W) -> str:
        """Return the means over the seeds; of several seeds, with half of their range."""
        return ", ".join(_mean_and_spread(self.figures(key, w), digits) for w in ws)


def finished(out: Path, recipe: Recipe) -> list[Measured]:
    """Return the plans of which at least one seed is finished.

    Raises StudyError if there is none.
    """
    plans = []
    for name, entry in PLANS.items():
        paths = sorted((out / name).glob(f"seed-*/{ROWS}"))
        seeds = {int(p.parent.name.removeprefix("seed-")): cells_of(read_json(p)) for p in paths}
        if seeds:
            plans.append(Measured(name, entry.evaluations(recipe), seeds))
    if not plans:
        raise StudyError(
            f"at least one plan must be finished; {out} has no PLAN/seed-N/{ROWS}. Run "
            "`python -m studies cost_to_quality make` first."
        )
    return plans


def write(out: Path, recipe: Recipe, docs: Path) -> None:
    """Write the CSV and the plot into the documentation, and print the table."""
    plans = finished(out, recipe)
    rows = [row for plan in plans for row in _csv_rows(plan)]
    atomic_write(docs / "results" / "data" / "cost-to-quality.csv", comma_separated(rows).encode())
    atomic_write(docs / "images" / "cost-to-quality.svg", plot(plans).encode())
    print(table(plans, recipe))


def _csv_rows(plan: Measured) -> list[dict[str, Any]]:
    return [
        {"plan": plan.name, "seed": seed, "training_evaluations": plan.evaluations, "w": cell.w}
        | {key: cell.figures.by_name[key] for key in FIGURES}
        for seed, cells in plan.seeds.items()
        for cell in cells.drawn
    ]


def table(plans: Sequence[Measured], recipe: Recipe) -> str:
    """Return the table of the page: cost and figures of every plan."""
    chain = PLANS["chain-1024"].evaluations(recipe)
    head = ["plan", "seeds", "evaluations, thousands", "of the chain's"]
    head += [f"{FD}, w = {joined(W)}", f"paired distance, w = {joined(W)}", "variance, w = 1"]
    rows = [
        [
            f"{PLANS[plan.name].label} (`{plan.name}`)",
            str(len(plan.seeds)),
            f"{plan.evaluations / 1000:,.0f}",
            f"{plan.evaluations / chain:.2f}",
            plan.text(FD, 2),
            plan.text(RMS, 3),
            plan.text("variance", 1, (1.0,)),
        ]
        for plan in plans
    ]
    return markdown(head, rows, numbers=(1, 2, 3))


def _mean_and_spread(values: Sequence[float], digits: int) -> str:
    mean, half = statistics.mean(values), (max(values) - min(values)) / 2
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")


def plot(plans: Sequence[Measured]) -> str:
    """Return both distances at w = 1 against the evaluations of the training, as SVG."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fewstep", "font.size": 9}):
        figure = Figure(figsize=(8.4, 3.8), layout="constrained")
        FigureCanvasSVG(figure)
        for axes, key, label in zip(
            figure.subplots(1, 2), (FD, RMS), (FD, "paired distance"), strict=True
        ):
            for plan in plans:
                _draw(axes, plan, plan.figures(key, 1.0))
            axes.set_xlabel("network evaluations of the training")
            axes.set_ylabel(f"{label}, 4 steps, w = 1")
            axes.grid(color="#e4e4e4")
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        return buffer.getvalue()


def _draw(axes: Any, plan: Measured, values: Sequence[float]) -> None:
    number = list(PLANS).index(plan.name)
    mean = statistics.mean(values)
    spread = [[mean - min(values)], [max(values) - mean]]
    # Plans of the same cost are moved apart, and the markers change after ten colours.
    x, marker = plan.evaluations * (1 + 0.012 * (number % 9 - 4)), "os^"[number // 10]
    axes.errorbar(x, mean, spread, fmt=marker, ms=5, capsize=2, label=plan.name)
