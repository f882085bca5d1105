"""From nothing to a report: train, distil, measure, write the page."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from fewstep.atomic import atomic_write
from fewstep.core.denoiser import Guided
from fewstep.distill.plan import TEACHER
from fewstep.errors import FolderError, NonFiniteError
from fewstep.folders import save_model
from fewstep.lock import writer_of
from fewstep.measure.cell import Cell, Cells
from fewstep.measure.drawing import How, image_drawer
from fewstep.measure.redrawn import Redrawn
from fewstep.metrics import FD_TO_TEACHER, RMS
from fewstep.models import Model, card_of, model_of
from fewstep.recipes.begun import check_folder
from fewstep.recipes.check import Checked, check_report
from fewstep.recipes.config import Recipe
from fewstep.recipes.duration import speed_of
from fewstep.recipes.run import Log, Run
from fewstep.recipes.study_page import remarks_of, study_of
from fewstep.recipes.wanted import Wanted, evaluations_of, reference_of, wanted_of
from fewstep.show.figures import SHEET, Remarks, remark_lines, write_figures
from fewstep.show.report import write_report
from fewstep.show.sheet import contact_sheet, save_sheet
from fewstep.train.progress import duration

FIRST = 64  # pixels; smaller images are enlarged to it in the first picture


def run_study(
    recipe: Recipe,
    out: Path,
    device: str | None,
    say: Log,
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
    seconds = _seconds_left(run, checked, teachers)
    if seconds is not None:
        run.tell(
            f"time: about {duration(seconds)} of training and sampling, estimated from the speed "
            "of the network on this machine"
        )
    for note in checked.notes:
        run.tell(f"note: {note}")
    try:
        for folder in teachers:
            run.use_teacher(folder)
        if not teachers:
            run.train_teacher()
            _draw_first(run, checked)
        for stage in run.plan:
            run.distill(stage)
        with writer_of(checked.evaluation.folder) if run.is_main else nullcontext():
            cells = measure_run(run, checked)
        if not run.is_main:  # the others have nothing left to do
            return run.out / "report.html"
    finally:
        # A run that was interrupted took time too.
        if run.is_main:
            seconds = _clock(run.out, time.perf_counter() - started)
    study = study_of(run, checked, cells, seconds)
    write_figures(run.out, cells, remarks_of(cells, run, checked))
    for line in remark_lines(Remarks(study.warnings, study.missing)):
        run.tell(line)
    return write_report(run.out, study)


def _seconds_left(run: Run, checked: Checked, teachers: Sequence[Path]) -> float | None:
    """Estimate the seconds of what the run has not trained yet, and of its samples."""
    made = run.workspace.is_made
    left = [stage for stage in run.plan if not made(stage.name)]
    if not left and (run.out / "report.html").exists():
        return None
    speed = speed_of(run, teachers)
    if speed is None:
        return None
    seconds = speed.distillation(left, run.recipe.distill.batch_size)
    if not teachers and not made(TEACHER):
        seconds += speed.pretraining(run.recipe)
    settings = checked.settings
    return seconds + settings.samples * evaluations_of(run.plan, settings) * speed.forward


def _draw_first(run: Run, checked: Checked) -> None:
    """Draw the first samples of the teacher at w = 1, to be looked at before the report is made."""
    path = run.out / "sheets" / "teacher.png"
    if not run.is_main or path.exists():
        return
    evaluation, (_, sampler, steps) = checked.evaluation, reference_of(checked.settings)
    w = min(checked.settings.w, key=lambda w: abs(w - 1.0))
    try:
        how = How(sampler, steps, w, evaluation.seed)
        some = range(min(SHEET, evaluation.samples))
        images = image_drawer(run.load(TEACHER), evaluation.conditions)(how, some)
        sheet = contact_sheet(images, 10, scale=max(1, FIRST // max(images.shape[-2:])))
    except NonFiniteError:
        return  # the report says so, with the reason
    path.parent.mkdir(exist_ok=True)
    save_sheet(sheet, path, {"model": TEACHER, "w": w, "steps": steps, "sampler": sampler})
    run.tell(f"first picture: {path}, the teacher's samples at w = {w:g}")


def measure_run(run: Run, checked: Checked) -> Cells:
    """Measure every cell that the recipe names, and put the students' figures on their cards.

    All processes of the run must call this; they share the work.
    """
    evaluation, settings = checked.evaluation, checked.settings
    evaluation.open()
    teacher = run.load(TEACHER)
    references: dict[float, Cell] = {}
    _, sampler, steps = reference_of(settings)
    others = settings.w if settings.fd_to_teacher else ()
    redrawn = {w: Redrawn(evaluation, teacher, sampler, steps, w) for w in others}
    for w in settings.w:
        again = redrawn.get(w)
        cell = evaluation.cell(TEACHER, teacher, w=w, steps=steps, sampler=sampler, redrawn=again)
        if cell.figures.rms_to_teacher is None and cell.file.count:
            # Its distance to itself: the table says 0, and the file need not be measured twice.
            missing = {name: reason for name, reason in cell.missing.items() if name != RMS}
            figures = replace(cell.figures, rms_to_teacher=0.0)
            cell = replace(cell, figures=figures, missing=missing)
        references[w] = cell
    cells = list(references.values())
    for name, columns in _by_name(wanted_of(run.plan, settings)).items():
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
                    redrawn=redrawn.get(w),
                )
                cells.append(cell)
        if run.is_main:
            _keep_figures(run, name, columns[0].shown, model, cells)
        run.wait()
    return Cells(cells)


def _by_name(wanted: Sequence[Wanted]) -> dict[str, list[Wanted]]:
    out: dict[str, list[Wanted]] = {}
    for column in wanted:
        out.setdefault(column.name, []).append(column)
    return out


def _keep_figures(
    run: Run, name: str, shown: str, model: Model | Guided, cells: Sequence[Cell]
) -> None:
    """Put the distances of a student on its card."""
    card = card_of(model)
    counts = card.stage.counts
    if not counts or card.pair:
        return
    figures = {
        f"{key} at w={cell.w:g}{f', steps={cell.steps}' if len(counts) > 1 else ''}": round(
            value, 6
        )
        for cell in cells
        if (cell.model, cell.sampler) == (shown, card.sampler)
        for key, value in (
            (cell.figures.fd_name, cell.figures.fd),
            (RMS, cell.figures.rms_to_teacher),
            (FD_TO_TEACHER, cell.figures.fd_to_teacher),
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


def _clock(out: Path, seconds: float) -> float:
    """Add to the time that earlier, interrupted runs of this folder took; return the sum."""
    path = out / "seconds.json"
    try:
        before = max(0.0, float(json.loads(path.read_bytes())))
    except (OSError, ValueError, TypeError, OverflowError):
        before = 0.0  # none yet, or damaged; only the report's total time depends on it
    atomic_write(path, json.dumps(before + seconds).encode())
    return before + seconds
