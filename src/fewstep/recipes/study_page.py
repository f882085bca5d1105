"""What the page of a run's report shows, from its measured cells."""

from __future__ import annotations

import json

import torch
from torch import Tensor

import fewstep
from fewstep.core.device import choose_device
from fewstep.distill.plan import STAGE_ONE, TEACHER, Plan, Stage
from fewstep.errors import NonFiniteError
from fewstep.measure.cell import DDIM, Cell, Cells, Line
from fewstep.measure.drawing import How, image_drawer
from fewstep.measure.origin import device_name
from fewstep.metrics import Features, check_finite_images, paired_rms
from fewstep.models import model_of
from fewstep.recipes.check import Checked
from fewstep.recipes.run import Run
from fewstep.recipes.schema import EvaluateConfig
from fewstep.recipes.wanted import counts_of, reference_of, shown_names
from fewstep.show.figures import SHEET, Remarks, remarks_on
from fewstep.show.study_data import COLUMNS, KnobCheck, SheetRow, Study

STRIP = 9  # values of w in the strip of the few-step student
FEW = 4  # steps of the student that the page is about, or as near as there are
STUDENT = "student"  # the role of every model that is neither the teacher nor a stage one


def _roles(plan: Plan) -> dict[str, str]:
    """Return {name in the tables: role} for the plots."""
    shown = shown_names(plan)
    roles = {TEACHER: TEACHER}
    for stage in plan:
        free = not stage.counts and stage.sampler is None
        roles.setdefault(shown[stage.name], STAGE_ONE if free else STUDENT)
    return roles


def study_of(run: Run, checked: Checked, cells: Cells, seconds: float) -> Study:
    """Return what the report shows. seconds: that the run has taken so far."""
    evaluation, settings = checked.evaluation, checked.settings
    held_out = evaluation.held_out_cell()
    measured = Cells([*([] if held_out is None else [held_out]), *cells])
    remarks = remarks_of(measured, run, checked)
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
        strip=_strip(run, checked),
        losses={name: _losses(run, name) for name in [TEACHER, *(s.name for s in run.plan)]},
        facts=_facts(run, seconds) | {"features": _features(evaluation.features)},
        reference=reference_of(settings),
        warnings=list(remarks.warnings),
        missing=list(remarks.missing),
        notes=notes,
        roles=remarks.roles,
    )


def remarks_of(cells: Cells, run: Run, checked: Checked) -> Remarks:
    """Return the warnings about the cells of a run, and the reasons of missing figures."""
    teachers = cells.of(reference_of(checked.settings))
    return remarks_on(cells, teachers, checked.evaluation, _roles(run.plan))


def _few_step(plan: Plan) -> tuple[Stage, int] | None:
    """Return the deterministic student and its steps nearest to FEW; None where there is none."""
    students = [(s, n) for s in plan if s.sampler == DDIM for n in s.counts]
    return min(students, key=lambda found: abs(found[1] - FEW), default=None)


def _sheet(run: Run, settings: EvaluateConfig, cells: Cells, w: float) -> list[SheetRow]:
    chosen, shown = _few_step(run.plan), shown_names(run.plan)
    few = FEW if chosen is None else chosen[1]
    lines = list(dict.fromkeys((reference_of(settings), Line(TEACHER, DDIM, few))))
    for stage in run.plan:
        counts, sampler = stage.counts or counts_of(stage, settings)[:1], stage.sampler or DDIM
        lines += [Line(shown[stage.name], sampler, n) for n in counts]
    found = [cell for cell in (cells.get(line, w) for line in lines) if cell is not None]
    return [SheetRow(_label(cell), cell.images[:SHEET]) for cell in found]


def _strip(run: Run, checked: Checked) -> list[SheetRow]:
    """Return the few-step student's images of the same noise, one row for each of several w."""
    chosen, ws = _few_step(run.plan), checked.settings.w
    if chosen is None:
        return []
    (stage, steps), rows = chosen, STRIP if min(ws) < max(ws) else 1
    evaluation = checked.evaluation
    draw = image_drawer(run.load(stage.name), evaluation.conditions)
    some = range(min(COLUMNS, evaluation.samples))
    out = []
    for w in torch.linspace(min(ws), max(ws), rows).tolist():
        try:
            images = draw(How(DDIM, steps, w, evaluation.seed), some)
            check_finite_images("samples", images)
        except NonFiniteError:
            continue
        out.append(SheetRow(f"w = {w:g}", images))
    return out


def _label(cell: Cell) -> str:
    model, sampler, steps = cell.line
    many = "s" if cell.evaluations > 1 else ""
    return (
        f"{model}{'' if sampler == DDIM else f', {sampler}'}, {steps} step"
        f"{'s' if steps > 1 else ''} ({cell.evaluations} evaluation{many})"
    )


def _knob(run: Run, settings: EvaluateConfig, cells: Cells) -> KnobCheck | None:
    chosen = _few_step(run.plan)
    if chosen is None:
        return None
    stage, steps = chosen
    name, ws = shown_names(run.plan)[stage.name], list(settings.w)
    students = _images(cells, Line(name, DDIM, steps))
    teachers = _images(cells, reference_of(settings))
    matrix = [[_apart(students[a], teachers[b]) for b in ws] for a in ws]
    return KnobCheck(name, ws, matrix)


def _images(cells: Cells, line: Line) -> dict[float | None, Tensor]:
    return {cell.w: cell.images for cell in cells.of(line)}


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
