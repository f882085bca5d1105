"""Draw the images of one cell, keep them, and measure them, by all processes together."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.core.denoiser import Guided
from fewstep.errors import NonFiniteError
from fewstep.measure.cell import Cell
from fewstep.measure.dealing import dealt
from fewstep.measure.drawing import How, drawer, look
from fewstep.measure.images import image_writer
from fewstep.measure.redrawn import NOT_FINITE, Redrawn
from fewstep.measure.room import at_once
from fewstep.metrics import FD_TO_TEACHER, RMS, Measured, Measuring, Rows, no_figures
from fewstep.models import Model
from fewstep.train import is_main

if TYPE_CHECKING:
    from fewstep.measure.evaluate import Evaluation


def draw_and_measure(
    evaluation: Evaluation,
    model: Model | Guided,
    how: How,
    path: Path,
    teacher: Cell | None,
    redrawn: Redrawn | None,
) -> tuple[Measured, float | None] | None:
    """Draw a cell into a file; return its figures and the seconds per image in the main process.

    All processes must call this. Images that are not finite give no figures, and a file of none.

    path: of the file. teacher, redrawn: what the cell is compared with, as in `Evaluation.cell`.
    """
    shape, samples, conditions = evaluation.dataset.shape, evaluation.samples, evaluation.conditions
    features, reference = evaluation.features, evaluation.reference
    others = None if redrawn is None else redrawn.moments
    draw = drawer(model, how, conditions, features)
    turns = dealt(samples, at_once(evaluation.batch_size, shape), draw)
    if not is_main():
        with suppress(NonFiniteError), conditions.opened(model):
            deque(turns, 0)
        return None
    paired = None if teacher is None or teacher.file.count < samples else teacher.file
    try:
        with Rows(path.parent) as rows, conditions.opened(model):
            labels = conditions.labels_for(model)
            measuring = Measuring(samples, labels, features, reference, rows, others)
            with image_writer(path, samples, shape, whole=teacher is None) as writer:
                seconds = look(turns, writer, measuring, paired) / samples
            measured = measuring.measured()
    except NonFiniteError as error:
        with image_writer(path, 0, shape):
            pass
        return no_figures(features, f"{error}"), None
    if teacher is not None and paired is None:
        measured.missing[RMS] = "The images of the teacher are infinite or not a number."
    if redrawn is not None and others is None:
        measured.missing[FD_TO_TEACHER] = NOT_FINITE
    return measured, seconds
