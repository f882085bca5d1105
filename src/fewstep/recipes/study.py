"""From nothing to a report: train, distil, measure, write the page."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

import fewstep
from fewstep.atomic import atomic_write
from fewstep.core.denoiser import Guided
from fewstep.data import Prompts
from fewstep.distill.plan import STAGE_ONE, TEACHER
from fewstep.errors import FolderError, RecipeError
from fewstep.metrics import Features, distance_key, paired_rms
from fewstep.models import UNetModel, card_of, save_model
from fewstep.models.solvers import SOLVERS
from fewstep.recipes.config import Recipe
from fewstep.recipes.evaluate import KEPT, Cell, Evaluation, device_name
from fewstep.recipes.figures import write_figures
from fewstep.recipes.report import KnobCheck, SheetRow, Study, write_report
from fewstep.recipes.run import Run, Say, default_device

SHEET = 20  # images in a row of the sheets: each class twice
Key = tuple[str, str, int, float]


def run_study(
    recipe: Recipe,
    out: Path,
    device: str | None,
    say: Say,
    progress: bool = True,
    teachers: Sequence[Path] = (),
) -> Path:
    """Run a recipe to its report; return the page. What is finished is not made again.

    teachers: folders of a teacher, or of a stage one, that are finished elsewhere; without them
        the run trains its own.
    """
    started = time.perf_counter()
    run = Run(recipe, out, device, say, progress)
    run.prepare()
    if isinstance(run.images, Prompts):
        raise RecipeError(
            f"{recipe.data.name} has prompts alone, and figures compare with images: use `fewstep "
            "distill`, then `fewstep evaluate --reference IMAGES`."
        )
    cost = run.plan.cost(recipe.distill.batch_size)
    run.tell(f"plan: {len(run.plan.stages)} students, {cost.evaluations:,} network evaluations")
    try:
        for folder in teachers:
            run.use_teacher(folder)
        if not teachers:
            run.train_teacher()
        elif not run.is_done(TEACHER):
            raise FolderError(
                "the figures are measured against a guided teacher, and none was given: give its "
                "folder with --teacher too."
            )
        for stage in run.plan:
            run.distill(stage)
        if not run.is_main:  # the others have nothing left to do
            return out / "report.html"
        evaluation, cells = measure_run(run)
    finally:
        # What was stopped half way took its time too.
        if run.is_main:
            seconds = _clock(out, time.perf_counter() - started)
    study = _study(run, evaluation, cells, seconds)
    sheets = {
        w: [cell.images[:SHEET] for (*_, v), cell in cells.items() if v == w]
        for w in recipe.evaluate.w
    }
    write_figures(out, [cell.row for cell in cells.values()], sheets)
    return write_report(out, study)


def measure_run(run: Run) -> tuple[Evaluation, dict[Key, Cell]]:
    """Measure every cell that the recipe names, and put the students' figures on their cards."""
    settings = run.recipe.evaluate
    evaluation = Evaluation(
        run.recipe.data,
        run.out / "evaluation",
        settings.samples,
        run.recipe.seed,
        settings.batch_size,
        None if settings.features is None else Path(settings.features),
        run.device or default_device(),
        run.say,
    )
    teacher = run.load(TEACHER)
    cells: dict[Key, Cell] = {}
    for w in settings.w:
        reference = evaluation.cell(TEACHER, teacher, w=w, steps=settings.reference_steps)
        # Its distance to itself: the row says 0, and the file need not be measured twice.
        reference = replace(reference, row={**reference.row, "rms_to_teacher": 0.0})
        cells[TEACHER, "deterministic", settings.reference_steps, w] = reference
    for name, steps, sampler in _wanted(run):
        model = run.load(name)
        for w in settings.w:
            reference = cells[TEACHER, "deterministic", settings.reference_steps, w]
            cell = evaluation.cell(
                _table_name(name), model, w=w, steps=steps, sampler=sampler, teacher=reference
            )
            cells[cell.row["model"], cell.row["sampler"], cell.row["steps"], w] = cell
        _figures(run, name, model, cells)
    return evaluation, cells


def _wanted(run: Run) -> list[tuple[str, int | None, str | None]]:
    settings = run.recipe.evaluate
    out: list[tuple[str, int | None, str | None]] = [
        (TEACHER, n, None) for n in settings.teacher_steps if n != settings.reference_steps
    ]
    out += [(TEACHER, n, solver) for solver in SOLVERS for n in settings.solver_steps]
    for stage in run.plan:
        if stage.direction == "encode":
            continue
        counts = settings.stage_one_steps if stage.steps is None else (None,)
        out += [(stage.name, n, None) for n in counts]
    return out


def _table_name(name: str) -> str:
    # The sampler has a column of its own, so a stochastic student is named by its steps.
    return name.removesuffix("-stochastic")


def _figures(run: Run, name: str, model: UNetModel | Guided, cells: dict[Key, Cell]) -> None:
    card = card_of(model)
    if card.stage != "halve" or not isinstance(model, UNetModel):
        return
    figures = {
        f"{key} at w={w:g}": round(float(cell.row[key]), 6)
        for (row_model, sampler, _, w), cell in cells.items()
        if row_model == _table_name(name) and sampler == card.sampler
        for key in (distance_key(cell.row), "rms_to_teacher")
        if cell.row[key] is not None
    }
    if figures != card.figures:
        model.card = card.model_copy(update={"figures": figures})
        save_model(model.cpu(), run.folder(name))


def _study(run: Run, evaluation: Evaluation, cells: dict[Key, Cell], seconds: float) -> Study:
    rows = [evaluation.held_out_row(), *(cell.row for cell in cells.values())]
    return Study(
        title=f"fewstep: {run.recipe.name}",
        features=evaluation.features.name,
        rows=rows,
        sheets={w: _sheet(run, cells, w) for w in run.recipe.evaluate.w},
        knob=_knob(run, cells),
        losses={name: _losses(run, name) for name in [TEACHER, *(s.name for s in run.plan)]},
        facts=_facts(run, seconds) | {"features": _features(evaluation.features)},
    )


def _sheet(run: Run, cells: dict[Key, Cell], w: float) -> list[SheetRow]:
    reference = run.recipe.evaluate.reference_steps
    wanted = [(TEACHER, reference), (TEACHER, 4)]
    wanted += [(s.name, s.steps) for s in run.plan if s.sampler == "deterministic" and s.steps]
    return [
        SheetRow(_label(name, steps), cells[name, "deterministic", steps, w].images[:SHEET])
        for name, steps in wanted
        if (name, "deterministic", steps, w) in cells
    ]


def _label(name: str, steps: int) -> str:
    if name == TEACHER:
        return f"teacher, {steps} steps ({2 * steps} evaluations)"
    return f"{name} ({steps} evaluation{'s' if steps > 1 else ''})"


def _knob(run: Run, cells: dict[Key, Cell]) -> KnobCheck:
    ws, reference = list(run.recipe.evaluate.w), run.recipe.evaluate.reference_steps
    students = [s for s in run.plan if s.sampler == "deterministic" and s.steps]
    chosen = min(students, key=lambda s: abs((s.steps or 0) - 4))
    steps = chosen.steps or 0
    matrix = [
        [
            paired_rms(
                cells[chosen.name, "deterministic", steps, a].images[:KEPT],
                cells[TEACHER, "deterministic", reference, b].images[:KEPT],
            )
            for b in ws
        ]
        for a in ws
    ]
    return KnobCheck(chosen.name, ws, matrix)


def _losses(run: Run, name: str) -> list[tuple[int, float]]:
    path = run.out / "training" / name / "metrics.jsonl"
    if not path.is_file():  # a teacher that was brought in from elsewhere
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(int(row["update"]), float(row["loss"])) for row in rows]


def _facts(run: Run, seconds: float) -> dict[str, str]:
    model = run.load(STAGE_ONE if run.is_done(STAGE_ONE) else TEACHER)
    network = model if isinstance(model, UNetModel) else model.denoiser
    assert isinstance(network, UNetModel)
    recipe = run.recipe
    updates = [s.updates for s in run.plan]
    if (run.out / "training" / TEACHER).is_dir():  # and not brought in from elsewhere
        updates.insert(0, recipe.teacher.updates)
    return {
        "recipe": recipe.name,
        "seed": str(recipe.seed),
        "network": f"{sum(p.numel() for p in network.parameters()):,} parameters",
        "training": f"{sum(updates):,} updates in {len(updates)} stages",
        "distillation": f"{run.plan.cost(recipe.distill.batch_size).evaluations:,} evaluations",
        "samples a cell": f"{recipe.evaluate.samples:,}",
        "time in all": f"{seconds / 60:.1f} minutes",
        "device": device_name(run.device or default_device()),
        "versions": f"fewstep {fewstep.__version__}, torch {torch.__version__}",
    }


def _features(features: Features) -> str:
    accuracy = getattr(features, "held_out_accuracy", None)
    known = "" if accuracy is None else f", accuracy {accuracy:.3f} on the held-out images"
    return f"{features.name}{known}"


def _clock(out: Path, seconds: float) -> float:
    """Add to the time that earlier, interrupted runs of this folder took; return the sum."""
    path = out / "seconds.json"
    before = float(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else 0.0
    atomic_write(path, json.dumps(before + seconds).encode())
    return before + seconds
