"""From nothing to a report: train, distil, measure, write the page."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import fewstep
from fewstep.atomic import atomic_write
from fewstep.core.denoiser import Guided
from fewstep.core.device import choose_device
from fewstep.distill.plan import KINDS, STAGE_ONE, TEACHER, Plan, Stage
from fewstep.errors import FolderError
from fewstep.folders import save_model
from fewstep.lock import writer_of
from fewstep.measure.cell import DDIM, Cell, Cells, Line
from fewstep.measure.evaluate import KEPT, device_name
from fewstep.measure.solvers import SOLVERS
from fewstep.metrics import RMS, Features, paired_rms
from fewstep.models import Model, card_of, model_of
from fewstep.recipes.begun import check_folder
from fewstep.recipes.check import Checked, check_report
from fewstep.recipes.config import Recipe
from fewstep.recipes.run import Run, Say
from fewstep.recipes.schema import EvaluateConfig
from fewstep.show.figures import SHEET, Remarks, remark_lines, remarks_on, write_figures
from fewstep.show.report import write_report
from fewstep.show.study_data import KnobCheck, SheetRow, Study

FEW = 4  # steps of the student that the page is about, or as near as there are
STUDENT = "student"  # the role of every model that is neither the teacher nor a stage one


def run_study(
    recipe: Recipe,
    out: Path,
    device: str | None,
    say: Say,
    progress: bool = True,
    teachers: Sequence[Path] = (),
) -> Path:
    """Run a recipe to its report; return the page. What is finished is not made again.

    teachers: folders of a finished teacher, or of a finished stage one; without them the run
        trains its own.

    Raises what `Run.check` and `check_report` raise, before anything is written or trained.
    """
    started = time.perf_counter()
    run = Run(recipe, out, device, say, progress)
    check_folder(run.workspace)
    checked = check_report(run, teachers)
    with run.writing(teachers=teachers):
        return _run(run, checked, teachers, started)


def _run(run: Run, checked: Checked, teachers: Sequence[Path], started: float) -> Path:
    cost = run.plan.cost(run.recipe.distill.batch_size)
    run.tell(f"plan: {len(run.plan.stages)} students, {cost.evaluations:,} network evaluations")
    for note in checked.notes:
        run.tell(f"note: {note}")
    try:
        for folder in teachers:
            run.use_teacher(folder)
        if not teachers:
            run.train_teacher()
        for stage in run.plan:
            run.distill(stage)
        if not run.is_main:  # the others have nothing left to do
            return run.out / "report.html"
        with writer_of(checked.evaluation.folder):
            cells = measure_run(run, checked)
    finally:
        # A run that was interrupted took time too.
        if run.is_main:
            seconds = _clock(run.out, time.perf_counter() - started)
    study = _study(run, checked, cells, seconds)
    write_figures(run.out, cells, _remarks(cells, run, checked))
    for line in remark_lines(Remarks(study.warnings, study.missing)):
        run.tell(line)
    return write_report(run.out, study)


@dataclass(frozen=True)
class Wanted:
    """One column of cells: a model at one number of steps, by one sampler, at every w.

    name: of the model's folder. shown: its name in the tables.
    """

    name: str
    shown: str
    steps: int | None
    sampler: str | None


def measure_run(run: Run, checked: Checked) -> Cells:
    """Measure every cell that the recipe names, and put the students' figures on their cards."""
    evaluation, settings = checked.evaluation, checked.settings
    teacher = run.load(TEACHER)
    references: dict[float, Cell] = {}
    for w in settings.w:
        cell = evaluation.cell(TEACHER, teacher, w=w, steps=settings.reference_steps)
        if cell.figures.rms_to_teacher is None and len(cell.images):
            # Its distance to itself: the table says 0, and the file need not be measured twice.
            missing = {name: reason for name, reason in cell.missing.items() if name != RMS}
            figures = replace(cell.figures, rms_to_teacher=0.0)
            cell = replace(cell, figures=figures, missing=missing)
        references[w] = cell
    cells = list(references.values())
    for name, columns in _by_name(_wanted(run.plan, settings)).items():
        model = run.load(name)
        for wanted in columns:
            for w in settings.w:
                cell = evaluation.cell(
                    wanted.shown,
                    model,
                    w=w,
                    steps=wanted.steps,
                    sampler=wanted.sampler,
                    teacher=references[w],
                )
                cells.append(cell)
        _keep_figures(run, name, columns[0].shown, model, cells)
    return Cells(cells)


def _by_name(wanted: Sequence[Wanted]) -> dict[str, list[Wanted]]:
    out: dict[str, list[Wanted]] = {}
    for column in wanted:
        out.setdefault(column.name, []).append(column)
    return out


def _wanted(plan: Plan, settings: EvaluateConfig) -> list[Wanted]:
    counts = [n for n in settings.teacher_steps if n != settings.reference_steps]
    out = [Wanted(TEACHER, TEACHER, n, None) for n in counts]
    out += [Wanted(TEACHER, TEACHER, n, s) for s in SOLVERS for n in settings.solver_steps]
    shown = shown_names(plan)
    for stage in plan:
        if stage.direction == "encode":
            continue
        steps = settings.stage_one_steps if stage.steps is None else (None,)
        out += [Wanted(stage.name, shown[stage.name], n, None) for n in steps]
    return list(dict.fromkeys(out))


def shown_names(plan: Plan) -> dict[str, str]:
    """Return the name of each stage in the tables: {name of the stage: name that is shown}.

    The sampler has a column of its own, so `student-4-stochastic` is shown as `student-4`, unless
    that would give two stages the same row. Every other name is shown as it is.
    """
    taken = {(s.name, s.sampler) for s in plan}
    plain = {s: _plain_name(s) for s in plan}
    return {s.name: s.name if (plain[s], s.sampler) in taken else plain[s] for s in plan}


def _plain_name(stage: Stage) -> str:
    """Return a default name without its sampler; any other name as it is."""
    default_name = KINDS[stage.kind].default_name
    plain = default_name(stage.model_copy(update={"stride": 1}))
    return plain if stage.name == default_name(stage) else stage.name


def _keep_figures(
    run: Run, name: str, shown: str, model: Model | Guided, cells: Sequence[Cell]
) -> None:
    """Put the distances of a student on its card."""
    card = card_of(model)
    if card.steps is None or card.pair:
        return
    figures = {
        f"{key} at w={cell.w:g}": round(value, 6)
        for cell in cells
        if (cell.model, cell.sampler) == (shown, card.sampler)
        for key, value in (
            (cell.figures.fd_name, cell.figures.fd),
            (RMS, cell.figures.rms_to_teacher),
        )
        if value is not None
    }
    if figures != card.figures:
        student = model_of(model)
        student.card = card.model_copy(update={"figures": figures})
        try:
            save_model(student.cpu(), run.folder(name))
        except FolderError as error:  # the user's own files beside the weights
            run.tell(f"note: {name} keeps its card without these figures: {error}")


def _roles(plan: Plan) -> dict[str, str]:
    """Return {name in the tables: role} for the plots."""
    shown = shown_names(plan)
    roles = {TEACHER: TEACHER}
    for stage in plan:
        roles.setdefault(shown[stage.name], STAGE_ONE if stage.steps is None else STUDENT)
    return roles


def _study(run: Run, checked: Checked, cells: Cells, seconds: float) -> Study:
    evaluation, settings = checked.evaluation, checked.settings
    held_out = evaluation.held_out_cell()
    measured = Cells([*([] if held_out is None else [held_out]), *cells])
    remarks = _remarks(measured, run, checked)
    notes = list(checked.notes)
    if held_out is None:
        notes.append(
            "No images are held out (data.held_out), so there is no row of real images to compare "
            "with."
        )
    return Study(
        title=f"fewstep: {run.recipe.name}",
        features=evaluation.features.name,
        cells=measured,
        sheets={w: _sheet(run, settings, cells, w) for w in settings.w},
        knob=_knob(run, settings, cells),
        losses={name: _losses(run, name) for name in [TEACHER, *(s.name for s in run.plan)]},
        facts=_facts(run, seconds) | {"features": _features(evaluation.features)},
        reference_steps=settings.reference_steps,
        warnings=list(remarks.warnings),
        missing=list(remarks.missing),
        notes=notes,
        roles=remarks.roles,
    )


def _remarks(cells: Cells, run: Run, checked: Checked) -> Remarks:
    teachers = cells.of(Line(TEACHER, DDIM, checked.settings.reference_steps))
    return remarks_on(cells, teachers, checked.evaluation, _roles(run.plan))


def _few_step(plan: Plan) -> Stage | None:
    """Return the deterministic student whose steps are nearest to FEW; None where there is none."""
    students = [s for s in plan if s.sampler == DDIM and s.steps]
    return min(students, key=lambda s: abs((s.steps or 0) - FEW), default=None)


def _sheet(run: Run, settings: EvaluateConfig, cells: Cells, w: float) -> list[SheetRow]:
    chosen, shown = _few_step(run.plan), shown_names(run.plan)
    few = FEW if chosen is None else chosen.steps or FEW
    lines = [Line(TEACHER, DDIM, n) for n in dict.fromkeys((settings.reference_steps, few))]
    for stage in run.plan:
        if stage.steps is None:
            lines += [Line(shown[stage.name], DDIM, n) for n in settings.stage_one_steps[:1]]
        elif stage.sampler is not None:
            lines.append(Line(shown[stage.name], stage.sampler, stage.steps))
    found = [cell for cell in (cells.get(line, w) for line in lines) if cell is not None]
    return [SheetRow(_label(cell), cell.images[:SHEET]) for cell in found]


def _label(cell: Cell) -> str:
    model, sampler, steps = cell.line
    many = "s" if cell.evaluations > 1 else ""
    return (
        f"{model}{'' if sampler == DDIM else f', {sampler}'}, {steps} step"
        f"{'s' if steps > 1 else ''} ({cell.evaluations} evaluation{many})"
    )


def _knob(run: Run, settings: EvaluateConfig, cells: Cells) -> KnobCheck | None:
    chosen = _few_step(run.plan)
    if chosen is None or chosen.steps is None:
        return None
    name, ws = shown_names(run.plan)[chosen.name], list(settings.w)
    students = _images(cells, Line(name, DDIM, chosen.steps))
    teachers = _images(cells, Line(TEACHER, DDIM, settings.reference_steps))
    matrix = [[_apart(students[a], teachers[b]) for b in ws] for a in ws]
    return KnobCheck(name, ws, matrix)


def _images(cells: Cells, line: Line) -> dict[float | None, Tensor]:
    return {cell.w: cell.images[:KEPT] for cell in cells.of(line)}


def _apart(a: Tensor, b: Tensor) -> float | None:
    """Return the paired distance; None where the images of one of the two were not finite."""
    return paired_rms(a, b) if len(a) == len(b) > 0 else None


def _losses(run: Run, name: str) -> list[tuple[int, float]]:
    path = run.workspace.training(name) / "metrics.jsonl"
    if not path.is_file():  # a teacher that was made elsewhere
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(int(row["update"]), float(row["loss"])) for row in rows]


def _facts(run: Run, seconds: float) -> dict[str, str]:
    model = run.load(STAGE_ONE if run.workspace.is_done(STAGE_ONE) else TEACHER)
    network = model_of(model)
    recipe = run.recipe
    updates = [s.updates or 0 for s in run.plan]
    if run.workspace.training(TEACHER).is_dir():  # and not made elsewhere
        updates.insert(0, recipe.teacher.updates)
    return {
        "recipe": recipe.name,
        "seed": str(recipe.seed),
        "network": f"{sum(p.numel() for p in network.parameters()):,} parameters",
        "training": f"{sum(updates):,} updates in {len(updates)} stages",
        "distillation": f"{run.plan.cost(recipe.distill.batch_size).evaluations:,} evaluations",
        "samples per cell": f"{recipe.evaluate.samples:,}",
        "total time": f"{seconds / 60:.1f} minutes",
        "device": device_name(choose_device(run.device)),
        "versions": f"fewstep {fewstep.__version__}, torch {torch.__version__}",
    }


def _features(features: Features) -> str:
    accuracy = getattr(features, "held_out_accuracy", None)
    known = "" if accuracy is None else f", accuracy {accuracy:.3f} on the held-out images"
    return f"{features.name}{known}"


def _clock(out: Path, seconds: float) -> float:
    """Add to the time that earlier, interrupted runs of this folder took; return the sum."""
    path = out / "seconds.json"
    try:
        before = max(0.0, float(json.loads(path.read_bytes())))
    except (OSError, ValueError, TypeError, OverflowError):
        before = 0.0  # none yet, or damaged; only the report's total time depends on it
    atomic_write(path, json.dumps(before + seconds).encode())
    return before + seconds
