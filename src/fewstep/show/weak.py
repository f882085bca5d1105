"""Warnings beside weak figures: one list of rules, shown wherever the figures are shown.

A rule reads all cells of a table and names the figures that are easily misread. The page of a
report, `table.md` and the terminal mark those figures with the number of the warning and print the
sentence below the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fewstep.measure.cell import NOISY, Cell, Cells
from fewstep.metrics import FD_TO_TEACHER, RMS, Features, Reference

FEW = 1_000  # samples or training images; fewer give a rough distance under any features
PER_DIMENSION = 10  # samples per dimension of the features, for a covariance that is worth having
FEW_HELD_OUT = 100
WEAK = 0.5  # of the way from guessing to perfect
LITTLE = 0.5  # precision of a teacher, or its accuracy as a share of that of real images


class Warned(NamedTuple):
    """A warning: its sentence, and the figures that it is about.

    keys: columns of the table. rows: numbers of the rows; None for all.
    """

    sentence: str
    keys: tuple[str, ...]
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Measurements:
    """What the rules look at.

    Attributes:
        cells: of the table, that of held-out images included where it has one.
        teachers: cells of the many-step teacher that paired distances refer to, one per w.
        samples: per cell.
        dimensions: of the features.
        training_images: that the samples are compared with.
        accuracy, chance: of the features' classifier and of guessing; None where not known.
        held_out: images that the accuracy was measured on; None where not known.
        trained_here: whether fewstep trained the features.
        task: what they were trained to tell apart.
    """

    cells: Cells
    teachers: Sequence[Cell]
    samples: int
    dimensions: int
    training_images: int
    accuracy: float | None = None
    chance: float | None = None
    held_out: int | None = None
    trained_here: bool = False
    task: str = "classes"

    @property
    def fd(self) -> str:
        """The name of the Fréchet distance."""
        return self.cells.fd_name

    @property
    def to_images(self) -> tuple[str, ...]:
        """The figures that compare features of samples and of images."""
        return (self.fd, next(iter(self.cells)).figures.kd_name, "precision", "recall")

    @property
    def in_features(self) -> tuple[str, ...]:
        """The figures that compare features."""
        return (*self.to_images, FD_TO_TEACHER)

    def where(self, test: Callable[[Cell], bool]) -> tuple[int, ...]:
        """Return the rows of the cells that pass a test."""
        return tuple(i for i, cell in enumerate(self.cells) if test(cell))


def measurements_of(
    cells: Cells,
    teachers: Sequence[Cell],
    samples: int,
    features: Features,
    reference: Reference,
) -> Measurements:
    """Return cells with what is known of their features."""
    accuracy: float | None = getattr(features, "held_out_accuracy", None)
    if accuracy is not None and accuracy != accuracy:
        accuracy = None
    classes = features.num_classes
    chance: float | None = getattr(features, "chance", 1 / classes if classes else None)
    return Measurements(
        cells,
        teachers,
        samples,
        reference.features.shape[1],
        reference.count,
        accuracy,
        chance,
        getattr(features, "held_out", None),
        getattr(features, "data_sha256", None) is not None,
        getattr(features, "task", "classes"),
    )


def _few_samples(seen: Measurements) -> Iterable[Warned]:
    need = max(FEW, PER_DIMENSION * seen.dimensions)
    if seen.samples < need:
        yield Warned(
            f"{seen.samples:,} samples per cell are few for features of {seen.dimensions} "
            "dimensions: distances come out too large and change with the seed. Compare them only "
            f"with rows of as many samples, and use at least {need:,} for figures to report.",
            seen.in_features,
        )


def _few_images(seen: Measurements) -> Iterable[Warned]:
    if seen.training_images < FEW:
        yield Warned(
            f"The samples are compared with only {seen.training_images:,} training images, so "
            "distances to them are rough.",
            seen.to_images,
        )


def _few_held_out(seen: Measurements) -> Iterable[Warned]:
    rows = seen.where(lambda cell: cell.w is None)
    count = seen.held_out
    if rows and count is not None and count < FEW_HELD_OUT:
        yield Warned(
            f"Only {count:,} images are held out: their own figures and the accuracy of the "
            "features' classifier are rough.",
            ("model",),
            rows,
        )


def _weak_classifier(seen: Measurements) -> Iterable[Warned]:
    if seen.accuracy is None or seen.chance is None:
        return
    if seen.accuracy < seen.chance + WEAK * (1 - seen.chance):
        what = "classes of the held-out images" if seen.task == "classes" else "turns of images"
        yield Warned(
            f"The features' classifier is weak: it recognises {seen.accuracy:.0%} of the {what}, "
            f"where guessing gives {seen.chance:.0%}. Do not rely on figures in these features: "
            "use others (--features, evaluate.features).",
            (*seen.in_features, "score", "accuracy"),
        )


def _unknown_classifier(seen: Measurements) -> Iterable[Warned]:
    if seen.trained_here and seen.accuracy is None:
        yield Warned(
            "The accuracy of the features' classifier is unknown, since no images are held out. "
            "Set data.held_out to measure it.",
            (*seen.in_features, "score", "accuracy"),
        )


def _other_task(seen: Measurements) -> Iterable[Warned]:
    if seen.task != "classes":
        yield Warned(
            "The images have no classes, so the features are those of a small network that was "
            "trained here to tell how far an image was turned. Use features of a large data set "
            "(--features, evaluate.features) for figures to report.",
            seen.in_features,
        )


def _weak_teacher(seen: Measurements) -> Iterable[Warned]:
    figures = [cell.figures for cell in seen.teachers]
    precision = max((f.precision for f in figures if f.precision is not None), default=None)
    accuracy = max((f.accuracy for f in figures if f.accuracy is not None), default=None)
    faults = []
    if precision is not None and precision < LITTLE:
        faults.append(f"{precision:.0%} of its samples lie among the training images (precision)")
    if accuracy is not None and seen.accuracy and accuracy < LITTLE * seen.accuracy:
        faults.append(f"the classifier recognises {accuracy:.0%} of its samples")
    if faults:
        yield Warned(
            f"The teacher itself is weak: at best {' and '.join(faults)}. A student that is near "
            "to it is as weak, whatever its distance to the teacher.",
            (RMS, FD_TO_TEACHER),
        )


def _below_teacher(seen: Measurements) -> Iterable[Warned]:
    fd = seen.fd
    known = {c.w: c.figures.fd for c in seen.teachers}
    names = {c.model for c in seen.teachers}

    def is_below(cell: Cell) -> bool:
        theirs = known.get(cell.w)
        ours = None if cell.model in names else cell.figures.fd
        return theirs is not None and ours is not None and ours < theirs

    rows = seen.where(is_below)
    if rows:
        yield Warned(
            f"A lower {fd} than the teacher's at the same w is no proof of better images: compare "
            "variance and recall first.",
            (fd,),
            rows,
        )


def _floor(seen: Measurements) -> Iterable[Warned]:
    shown = set(seen.cells.lines)
    floors = [
        f"{cell.figures.fd_to_teacher:.3g} at w = {cell.w:g}"
        for cell in seen.teachers
        if cell.figures.fd_to_teacher is not None and cell.line not in shown
    ]
    if floors:
        yield Warned(
            f"{FD_TO_TEACHER} has a floor, the distance between two sets of the teacher's own "
            f"samples, of different seeds: {', '.join(floors)}.",
            (FD_TO_TEACHER,),
        )


def _unpaired(seen: Measurements) -> Iterable[Warned]:
    rows = seen.where(
        lambda cell: (
            cell.sampler in NOISY and cell.steps != 1 and cell.figures.rms_to_teacher is not None
        )
    )
    if rows:
        yield Warned(
            "This sampler adds noise of its own, so its images are not paired with the "
            "teacher's and their paired distance means nothing.",
            (RMS,),
            rows,
        )


RULES: tuple[Callable[[Measurements], Iterable[Warned]], ...] = (
    _few_samples,
    _few_images,
    _few_held_out,
    _weak_classifier,
    _unknown_classifier,
    _other_task,
    _weak_teacher,
    _below_teacher,
    _floor,
    _unpaired,
)


def warnings_of(seen: Measurements) -> list[Warned]:
    """Return the warnings about measurements, in the order of `RULES`; none about no cells."""
    if not len(seen.cells):
        return []
    return [warned for rule in RULES for warned in rule(seen)]


def marks_of(warnings: Sequence[Warned]) -> dict[tuple[int | None, str], list[int]]:
    """Return the numbers of the warnings about each figure: (row or None, key) -> numbers."""
    out: dict[tuple[int | None, str], list[int]] = {}
    for number, warned in enumerate(warnings, 1):
        for key in warned.keys:
            for row in (None,) if warned.rows is None else warned.rows:
                out.setdefault((row, key), []).append(number)
    return out


def reasons_of(cells: Iterable[Cell]) -> list[str]:
    """Return a sentence for each reason that figures of a table are missing."""
    cells = list(cells)
    found: dict[str, dict[str, list[int]]] = {}
    for i, cell in enumerate(cells):
        figures = cell.figures.by_name
        for name, reason in cell.missing.items():
            if name in figures and figures[name] is None:
                found.setdefault(reason, {}).setdefault(name, []).append(i)
    out = []
    for reason, names in found.items():
        places = sorted({i for where in names.values() for i in where})
        where = "every row" if len(places) == len(cells) else _where([cells[i] for i in places])
        out.append(f"{', '.join(names)} ({where}): {_finish(reason)}")
    return out


def _finish(reason: str) -> str:
    text = reason[:1].upper() + reason[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _where(cells: Sequence[Cell]) -> str:
    names = list(dict.fromkeys(_name(cell) for cell in cells))
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _name(cell: Cell) -> str:
    return cell.model if cell.w is None else f"{cell.model}, {cell.sampler}, {cell.steps} steps"
