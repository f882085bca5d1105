"""The sentences of the report's page that are computed from its rows."""

from __future__ import annotations

from collections.abc import Iterable

from fewstep.show.escape import in_html
from fewstep.show.study_data import Row, Study


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
        f"At w = {w:g} the student draws an image with <b>{student['evaluations']} network "
        f"evaluations</b>; its teacher used <b>{teacher['evaluations']}</b>."
    )
    if None not in (student[study.fd], teacher[study.fd]):
        text += (
            f" {fd}: <b>{student[study.fd]:.2f}</b> against the teacher's {teacher[study.fd]:.2f}"
        )
        ddim = study.teacher(w, steps=student["steps"])
        if ddim is not None and ddim is not teacher and ddim[study.fd] is not None:
            text += f", and {ddim[study.fd]:.2f} for {_ddim(ddim)}"
        text += "."
    text += _paired(study, w, student, teacher)
    times = teacher["seconds_per_image"], student["seconds_per_image"]
    if times[0] and times[1]:
        text += f" Measured here, it is <b>{times[0] / times[1]:.0f} times faster</b>."
    return f"<p class=lead>{text}</p>"


def _ddim(row: Row) -> str:
    return f"the teacher's own {row['steps']} DDIM steps ({row['evaluations']} evaluations)"


def _paired(study: Study, w: float, student: Row, teacher: Row) -> str:
    ddim = study.teacher(w, steps=student["steps"])
    if student["rms_to_teacher"] is None:
        return ""
    text = f" Paired distance to the teacher's images: <b>{student['rms_to_teacher']:.3f}</b>"
    if ddim is not None and ddim is not teacher and ddim["rms_to_teacher"] is not None:
        text += f", against {ddim['rms_to_teacher']:.3f} for the teacher's {ddim['steps']} steps"
    return f"{text}."


def limits(study: Study) -> Iterable[str]:
    """Yield sentences on how to read the figures."""
    one = study.teacher(study.main_w, steps=1)
    figures = ("accuracy", "score", "variance")
    if one is not None and all(one[k] is not None for k in figures):
        yield (
            "Accuracy and score are sanity checks. One DDIM step of the teacher gives class "
            f"averages: accuracy {one['accuracy']:.3f}, score {one['score']:.2f}, with a "
            f"within-class variance of {one['variance']:.2f}."
        )
    count = study.facts.get("samples per cell", "so many")
    yield (
        f"With {count} samples per cell, the noise of sampling changes a Fréchet distance by some "
        "per cent. The paired distance has less of it, since every cell starts from the same noise."
    )
    held = next((r for r in study.rows if r["model"] == "held-out"), None)
    if held is not None and held[study.fd] is not None:
        yield (
            f"The held-out images have a {study.fd} of {held[study.fd]:.2f}. They are few, and the "
            "distance of a small sample is too large, so that is no lower bound for a cell."
        )
    yield from _compared(study)
    yield (
        "Times were taken once, in batches, on the machine named above. The ratios within a table "
        "mean more than the times."
    )


def _compared(study: Study) -> Iterable[str]:
    w = study.main_w
    plain = study.student(w)
    if plain is None or plain[study.fd] is None:
        return
    noisy = next(
        (
            r
            for r in study.rows
            if (r["sampler"], r["steps"], r["w"]) == ("stochastic", plain["steps"], w)
            and r[study.fd] is not None
        ),
        None,
    )
    if noisy is not None:
        worse = noisy[study.fd] > plain[study.fd]
        yield (
            f"The stochastic sampler at {plain['steps']} steps was "
            f"{'worse' if worse else 'better'} here than the deterministic one "
            f"({study.fd} {noisy[study.fd]:.2f} against {plain[study.fd]:.2f} at w = {w:g})."
        )
