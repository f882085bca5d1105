"""Make and measure the plans of docs/lab/cost-to-quality.md; what is finished is kept.

    python docs/lab/cost_to_quality.py make runs/demo --out runs/study-cost [--plans NAME ...]
    python docs/lab/cost_to_quality.py write runs/study-cost

`make` takes the teacher, the stage one and the many-step cells of a finished `fewstep demo`; every
plan ends at four steps. `write` makes the table of the page, its CSV and its plot of what there is.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.atomic import atomic_write
from fewstep.distill.plan import STAGE_ONE, TEACHER
from fewstep.recipes.config import Recipe, check_recipe, load_recipe
from fewstep.recipes.evaluate import Evaluation
from fewstep.recipes.run import Run

Told = dict[str, Any]
DOCS = Path(__file__).parents[1]
W = (0.0, 1.0, 4.0)
REFERENCE_STEPS = 256
FULL: Told = {"parent": TEACHER, "updates": 2000}
SHORT: Told = {"parent": TEACHER, "updates": 600}
FD, RMS = "fd_digits", "rms_to_teacher"


@dataclass(frozen=True)
class Entry:
    """One plan to four steps.

    Attributes:
        said: in the table.
        stage_one: how it is made, or None where the plan goes without.
        students: the stages after it.
        shares: whose stage one it is: "demo", or the name of another entry; None makes its own.
            What is shared is counted all the same.
        distill, network: other settings.
    """

    said: str
    stage_one: Told | None
    students: tuple[Told, ...]
    shares: str | None = None
    distill: Told = field(default_factory=dict)
    network: Told = field(default_factory=dict)

    def recipe(self, seed: int, whole: bool = False) -> Recipe:
        """Return the digits' recipe with this plan; `whole` has the stage one that is shared."""
        data = json.loads(load_recipe("digits").model_dump_json())
        own = self.stage_one if whole or self.shares is None else None
        stages = ([own] if own else []) + list(self.students)
        data |= {"name": "cost-to-quality", "about": "docs/lab/cost-to-quality.md", "seed": seed}
        data["distill"] |= {"stages": stages, **self.distill}
        data["network"] |= self.network
        return check_recipe(data, "cost_to_quality")

    @property
    def evaluations(self) -> int:
        """What the whole plan costs."""
        recipe = self.recipe(0, whole=True)
        return recipe.distill.plan().cost(recipe.distill.batch_size).evaluations


def chain_to_4(first: int, updates: Sequence[int]) -> tuple[Told, ...]:
    """Return halvings from stage one: `first`, first / 2, ..., with so many updates each."""
    parent, out = STAGE_ONE, []
    for k, n in enumerate(updates):
        steps = first >> k
        out.append({"parent": parent, "steps": steps, "updates": n})
        parent = f"student-{steps}"
    return tuple(out)


def straight(substeps: int, updates: int, parent: str = STAGE_ONE, **more: Any) -> tuple[Told]:
    """Return one stage to four steps."""
    return ({"parent": parent, "steps": 4, "substeps": substeps, "updates": updates, **more},)


TRAJECTORY: Told = {"states": "trajectory"}
# The first that are asked for come first: time may end before the list does.
PLANS: dict[str, Entry] = {
    "chain-1024": Entry("the paper's chain, 512 to 4", FULL, chain_to_4(512, [250] * 8), "demo"),
    "short-8": Entry("short stage one, 8 sub-steps", SHORT, straight(8, 333)),
    "full-8-4": Entry("full stage one, to 8, to 4", FULL, chain_to_4(8, [500, 400]), "demo"),
    "none-8": Entry("no stage one, 8 sub-steps", None, straight(8, 350, TEACHER)),
    "short-8-t": Entry(
        "short, 8 sub-steps, trajectories", SHORT, straight(8, 333, **TRAJECTORY), "short-8"
    ),
    "short-4": Entry("short, 4 sub-steps", SHORT, straight(4, 523), "short-8"),
    "short-16": Entry("short, 16 sub-steps", SHORT, straight(16, 193), "short-8"),
    "shorter-8": Entry(
        "300 updates of stage one, 8 sub-steps",
        {"parent": TEACHER, "updates": 300},
        straight(8, 469),
    ),
    "longer-8": Entry(
        "900 updates of stage one, 8 sub-steps",
        {"parent": TEACHER, "updates": 900},
        straight(8, 196),
    ),
    "short-4-2": Entry(
        "short, to 8 with 4 sub-steps, to 4",
        SHORT,
        (
            {"parent": STAGE_ONE, "steps": 8, "substeps": 4, "updates": 305},
            {"parent": "student-8", "steps": 4, "updates": 305},
        ),
        "short-8",
    ),
    "none-4": Entry("no stage one, 4 sub-steps", None, straight(4, 604, TEACHER)),
    "none-16": Entry("no stage one, 16 sub-steps", None, straight(16, 190, TEACHER)),
    "none-2-second": Entry(
        "no stage one, 2 sub-steps of order 2", None, straight(2, 949, TEACHER, order=2)
    ),
    "none-3-second": Entry(
        "no stage one, 3 sub-steps of order 2", None, straight(3, 738, TEACHER, order=2)
    ),
    "none-4-second": Entry(
        "no stage one, 4 sub-steps of order 2", None, straight(4, 604, TEACHER, order=2)
    ),
    "none-4-second-t": Entry(
        "no stage one, 4 sub-steps of order 2, trajectories",
        None,
        straight(4, 604, TEACHER, order=2),
        distill=TRAJECTORY,
    ),
    "none-4-second-plain": Entry(
        "no stage one, 4 sub-steps of order 2, plain w",
        None,
        straight(4, 604, TEACHER, order=2),
        network={"w_band": None},
    ),
    "none-4-second-333": Entry("the same, 333 updates", None, straight(4, 333, TEACHER, order=2)),
    "none-4-second-2416": Entry(
        "the same, 2,416 updates", None, straight(4, 2416, TEACHER, order=2)
    ),
    "none-8-4-second": Entry(
        "no stage one, to 8 with 2 sub-steps of order 2, to 4",
        None,
        (
            {"parent": TEACHER, "steps": 8, "updates": 554, "order": 2},
            {"parent": "student-8", "steps": 4, "updates": 554},
        ),
    ),
    "direct-4-second": Entry(
        "full stage one, 4 sub-steps of order 2", FULL, straight(4, 640, order=2), "demo"
    ),
    "short-4-second": Entry(
        "short, 4 sub-steps of order 2", SHORT, straight(4, 523, order=2), "short-8"
    ),
    "short-8-tt": Entry(
        "short, trajectories in both stages", SHORT, straight(8, 333), distill=TRAJECTORY
    ),
    "short-8-plain": Entry(
        "short, 8 sub-steps, plain w", SHORT, straight(8, 333), network={"w_band": None}
    ),
    "direct-8": Entry("full stage one, 8 sub-steps", FULL, straight(8, 410), "demo"),
    "direct-4": Entry("full stage one, 4 sub-steps", FULL, straight(4, 640), "demo"),
    "full-8-4-plain": Entry(
        "full stage one, to 8, to 4, plain w",
        FULL,
        chain_to_4(8, [500, 400]),
        network={"w_band": None},
    ),
    "none-8-t": Entry(
        "no stage one, trajectories", None, straight(8, 350, TEACHER), distill=TRAJECTORY
    ),
}
# What other runs beside the demo have made with the same settings and seed: not made again.
BROUGHT: dict[tuple[str, int], dict[str, str]] = {
    ("full-8-4", 0): {k: f"comparisons/{k}" for k in ("student-8", "student-4")},
    ("direct-8", 0): {"student-4": "comparisons/direct-4-of-8"},
    ("direct-4", 0): {"student-4": "comparisons/direct-4-of-4"},
    ("full-8-4-plain", 0): {
        name: f"compare-plain-w/{name}" for name in ("stage-one", "student-8", "student-4")
    },
}


def make(demo: Path, out: Path, names: Sequence[str], seeds: Sequence[int]) -> None:
    """Make and measure plans, name by name; what is finished is not made again."""
    if not (out / "evaluation").exists():
        shutil.copytree(demo / "evaluation", out / "evaluation")
    evaluation = Evaluation(
        load_recipe("digits").data, out / "evaluation", samples=2000, seed=0, say=say
    )
    for name in names:
        for seed in seeds:
            say(f"{name}, seed {seed}")
            run = _made(name, demo, out, seed)
            atomic_write(run.out / "figures.json", json.dumps(_measured(run, evaluation)).encode())


def _made(name: str, demo: Path, out: Path, seed: int) -> Run:
    entry = PLANS[name]
    run = Run(entry.recipe(seed), out / name / f"seed-{seed}", "cpu", say, progress=False)
    run.prepare()
    for model, source in BROUGHT.get((name, seed), {}).items():
        if (demo.parent / source).is_dir() and not run.is_done(model):
            shutil.copytree(demo.parent / source, run.folder(model))
    run.use_teacher(demo / TEACHER)
    if entry.shares is not None:
        other = demo if entry.shares == "demo" else out / entry.shares / f"seed-{seed}"
        run.use_teacher(other / STAGE_ONE)
    for stage in run.plan:
        run.distill(stage)
    return run


def _measured(run: Run, evaluation: Evaluation) -> list[Told]:
    teacher, student = run.load(TEACHER), run.load("student-4")
    rows = []
    for w in W:
        reference = evaluation.cell(TEACHER, teacher, w=w, steps=REFERENCE_STEPS)
        name = f"{run.out.parent.name}/{run.out.name}"
        rows.append(evaluation.cell(name, student, w=w, teacher=reference).row)
    return rows


def figures(out: Path) -> list[Told]:
    """Return a row for each plan, seed and w that is finished."""
    rows = []
    for name, entry in PLANS.items():
        for path in sorted((out / name).glob("seed-*/figures.json")):
            shared = {"plan": name, "seed": int(path.parent.name.removeprefix("seed-"))}
            shared["training_evaluations"] = entry.evaluations
            for row in json.loads(path.read_text(encoding="utf-8")):
                kept = {k: row[k] for k in ("w", FD, RMS, "recall", "variance")}
                rows.append(shared | kept)
    return rows


def write(out: Path) -> None:
    """Write the CSV and the plot, and print the table."""
    rows = figures(out)
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    atomic_write(DOCS / "results" / "data" / "cost-to-quality.csv", buffer.getvalue().encode())
    atomic_write(DOCS / "images" / "cost-to-quality.svg", _plot(rows).encode())
    print(_markdown(rows))


def _of(rows: Sequence[Told], plan: str, w: float, key: str) -> list[float]:
    return [r[key] for r in rows if r["plan"] == plan and r["w"] == w]


def _mean_and_spread(values: Sequence[float], digits: int) -> str:
    """Return the mean and, of several seeds, half of what lies between the extremes."""
    mean, half = statistics.mean(values), (max(values) - min(values)) / 2
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")


def _markdown(rows: Sequence[Told]) -> str:
    chain = PLANS["chain-1024"].evaluations
    said = ", ".join(f"{w:g}" for w in W)
    lines = [
        f"| plan | seeds | evaluations, thousands | of the chain's | {FD}, w = {said} | "
        f"paired distance, w = {said} | variance, w = 1 |",
        "| --- | ---: | ---: | ---: | --- | --- | --- |",
    ]
    for name, entry in PLANS.items():
        if not _of(rows, name, W[0], FD):
            continue
        columns = [
            ", ".join(_mean_and_spread(_of(rows, name, w, key), digits) for w in ws)
            for key, digits, ws in ((FD, 2, W), (RMS, 3, W), ("variance", 1, (1.0,)))
        ]
        cost = entry.evaluations
        lines.append(
            f"| {entry.said} (`{name}`) | {len(_of(rows, name, W[0], FD))} | {cost / 1000:,.0f} | "
            f"{cost / chain:.2f} | {' | '.join(columns)} |"
        )
    return "\n".join(lines)


def _plot(rows: Sequence[Told]) -> str:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fewstep", "font.size": 9}):
        figure = Figure(figsize=(8.4, 3.8), layout="constrained")
        FigureCanvasSVG(figure)
        for axes, key, label in zip(
            figure.subplots(1, 2), (FD, RMS), (FD, "paired distance"), strict=True
        ):
            for number, (name, entry) in enumerate(PLANS.items()):
                values = _of(rows, name, 1.0, key)
                if not values:
                    continue
                mean = statistics.mean(values)
                spread = [[mean - min(values)], [max(values) - mean]]
                # Plans of one cost stand beside each other, and ten colours go round.
                x, shape = entry.evaluations * (1 + 0.012 * (number % 9 - 4)), "os^"[number // 10]
                axes.errorbar(x, mean, spread, fmt=shape, ms=5, capsize=2, label=name)
            axes.set_xlabel("network evaluations of the training")
            axes.set_ylabel(f"{label}, 4 steps, w = 1")
            axes.grid(color="#e4e4e4")
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        return buffer.getvalue()


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("demo", type=Path, help="a finished `fewstep demo`")
    making.add_argument("--out", type=Path, required=True)
    making.add_argument("--plans", nargs="+", default=list(PLANS), choices=list(PLANS))
    making.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    writing = commands.add_parser("write")
    writing.add_argument("out", type=Path)
    given = parser.parse_args()
    if given.command == "make":
        make(given.demo, given.out, given.plans, given.seeds)
    else:
        write(given.out)


if __name__ == "__main__":
    main()
