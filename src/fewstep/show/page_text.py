"""The sentences of the report's page that are computed from its cells."""

from __future__ import annotations

from collections.abc import Iterable

from fewstep.measure.cell import STOCHASTIC, Cell
from fewstep.metrics import FD_TO_TEACHER
from fewstep.show.escape import in_html
from fewstep.show.study_data import Study


def headline(study: Study, w: float) -> str:
    """Return the first paragraph, as HTML: the student with few steps against its teacher."""
    student, teacher = study.student(w), study.teacher(w)
    if student is None or teacher is None:
        return (
            "<p class=lead>This run has no deterministic few-step student, so there is none to "
            "compare with the teacher.</p>"
        )
    fd = in_html(study.fd)
    text = (
        f"At w = {w:g} the student draws an image with <b>{student.evaluations} network "
        f"evaluations</b>; its teacher used <b>{teacher.evaluations}</b>."
    )
    few = study.teacher(w, steps=student.steps)
    few = None if few is teacher else few
    ours, theirs = student.figures.fd, teacher.figures.fd
    if ours is not None and theirs is not None:
        text += f" {fd}: <b>{ours:.2f}</b> against the teacher's {theirs:.2f}"
        if few is not None and few.figures.fd is not None:
            text += (
                f", and {few.figures.fd:.2f} for the teacher's own {few.steps} DDIM steps "
                f"({few.evaluations} evaluations)"
            )
        text += "."
    text += _paired(student, few)
    times = teacher.seconds_per_image, student.seconds_per_image
    if times[0] and times[1]:
        text += f" Measured here, it is <b>{times[0] / times[1]:.0f} times faster</b>."
    return f"<p class=lead>{text}</p>"


def _paired(student: Cell, few: Cell | None) -> str:
    ours, theirs = student.figures.rms_to_teacher, few and few.figures.rms_to_teacher
    if ours is None:
        return ""
    text = f" Paired distance to the teacher's images: <b>{ours:.3f}</b>"
    if few is not None and theirs is not None:
        text += f", against {theirs:.3f} for the teacher's {few.steps} steps"
    return f"{text}."


def limits(study: Study) -> Iterable[str]:
    """Yield sentences on how to read the figures."""
    one = study.teacher(study.main_w, steps=1)
    of_one = None if one is None else one.figures
    if of_one and None not in (of_one.accuracy, of_one.score, of_one.variance):
        yield (
            "Accuracy and score are sanity checks. One DDIM step of the teacher gives class "
            f"averages: accuracy {of_one.accuracy:.3f}, score {of_one.score:.2f}, with a "
            f"within-class variance of {of_one.variance:.2f}."
        )
    count = study.facts.get("samples per cell", "so many")
    yield (
        f"With {count} samples per cell, the noise of sampling changes a Fréchet distance by some "
        "per cent. The paired distance has less of it, since every cell starts from the same noise."
    )
    yield from _floor(study)
    held = study.cells.held_out
    if held is not None and held.figures.fd is not None:
        yield (
            f"The held-out images have a {study.fd} of {held.figures.fd:.2f}. They are few, and "
            "the distance of a small sample is too large, so that is no lower bound for a cell."
        )
    yield from _compared(study)
    yield (
        "Times were taken once, in batches, on the machine named above. The ratios within a table "
        "mean more than the times."
    )


def _floor(study: Study) -> Iterable[str]:
    teacher = study.teacher(study.main_w)
    floor = None if teacher is None else teacher.figures.fd_to_teacher
    if floor is not None:
        yield (
            f"{FD_TO_TEACHER} compares samples with those that the many-step teacher draws with "
            f"another seed. Its own row is the floor, the distance between two sets of its "
            f"samples: {floor:.3g} at w = {study.main_w:g}."
        )


def _compared(study: Study) -> Iterable[str]:
    w = study.main_w
    plain = study.student(w)
    if plain is None or plain.figures.fd is None:
        return
    ours = plain.figures.fd
    theirs = (
        cell.figures.fd
        for cell in study.cells.at_w(w)
        if (cell.sampler, cell.steps) == (STOCHASTIC, plain.steps)
    )
    noisy = next((fd for fd in theirs if fd is not None), None)
    if noisy is not None:
        yield (
            f"The stochastic sampler at {plain.steps} steps was "
            f"{'worse' if noisy > ours else 'better'} here than the deterministic one "
            f"({study.fd} {noisy:.2f} against {ours:.2f} at w = {w:g})."
        )
