"""Warnings beside weak figures: one list of rules, shown wherever the figures are shown.

A rule reads a whole table and names the figures that are easily misread. The page of a report,
`table.md` and the terminal mark those figures with the number of the warning and print the
sentence below the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fewstep.metrics import Features, Reference, distance_key

Row = dict[str, Any]
FEW = 1_000  # samples or training images; fewer give a rough distance under any features
PER_DIMENSION = 10  # samples per dimension of the features, for a covariance that is worth having
FEW_HELD_OUT = 100
WEAK = 0.5  # of the way from guessing to perfect
LITTLE = 0.5  # precision of a teacher, or its accuracy as a share of that of real images
NOISY = "stochastic"
RMS = "rms_to_teacher"


class Warned(NamedTuple):
    """A warning: its sentence, and the figures that it is about.

    keys: columns of the table. rows: numbers of the rows; None stands for all.
    """

    sentence: str
    keys: tuple[str, ...]
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Table:
    """What the rules look at.

    Attributes:
        rows: of the table, held-out images included where they have one.
        teachers: rows of the many-step teacher that paired distances refer to, one per w.
        samples: per cell.
        dimensions: of the features.
        training_images: that the samples are compared with.
        accuracy, chance: of the features' classifier and of guessing; None where not known.
        held_out: images that the accuracy was measured on; None where not known.
        trained_here: whether fewstep trained the features.
        task: what they were trained to tell apart.
    """

    rows: Sequence[Row]
    teachers: Sequence[Row]
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
        """The key of the Fréchet distance."""
        return distance_key(self.rows[0])

    @property
    def kd(self) -> str:
        """The key of the kernel distance."""
        return "kid" if self.fd == "fid" else f"kd_{self.fd.removeprefix('fd_')}"

    @property
    def in_features(self) -> tuple[str, ...]:
        """The figures that compare features."""
        return tuple(k for k in (self.fd, self.kd, "precision", "recall") if k in self.rows[0])

    def where(self, test: Callable[[Row], bool]) -> tuple[int, ...]:
        """Return the numbers of the rows that pass a test."""
        return tuple(i for i, row in enumerate(self.rows) if test(row))


def table_of(
    rows: Sequence[Row],
    teachers: Sequence[Row],
    samples: int,
    features: Features,
    reference: Reference,
) -> Table:
    """Return a table with what is known of its features."""
    accuracy: float | None = getattr(features, "held_out_accuracy", None)
    if accuracy is not None and accuracy != accuracy:
        accuracy = None
    classes = features.num_classes
    chance: float | None = getattr(features, "chance", 1 / classes if classes else None)
    return Table(
        rows,
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


def _few_samples(table: Table) -> Iterable[Warned]:
    need = max(FEW, PER_DIMENSION * table.dimensions)
    if table.samples < need:
        yield Warned(
            f"{table.samples:,} samples per cell are few for features of {table.dimensions} "
            "dimensions: distances come out too large and change with the seed. Compare them only "
            f"with rows of as many samples, and use at least {need:,} for figures to report.",
            table.in_features,
        )


def _few_images(table: Table) -> Iterable[Warned]:
    if table.training_images < FEW:
        yield Warned(
            f"The samples are compared with only {table.training_images:,} training images, so "
            "distances to them are rough.",
            table.in_features,
        )


def _few_held_out(table: Table) -> Iterable[Warned]:
    rows = table.where(lambda r: r["model"] == "held-out")
    count = table.held_out
    if rows and count is not None and count < FEW_HELD_OUT:
        yield Warned(
            f"Only {count:,} images are held out: their own figures and the accuracy of the "
            "features' classifier are rough.",
            ("model",),
            rows,
        )


def _weak_classifier(table: Table) -> Iterable[Warned]:
    if table.accuracy is None or table.chance is None:
        return
    if table.accuracy < table.chance + WEAK * (1 - table.chance):
        what = "classes of the held-out images" if table.task == "classes" else "turns of images"
        yield Warned(
            f"The features' classifier is weak: it recognises {table.accuracy:.0%} of the {what}, "
            f"where guessing gives {table.chance:.0%}. Do not rely on figures in these features: "
            "use others (--features, evaluate.features).",
            (*table.in_features, "score", "accuracy"),
        )


def _unknown_classifier(table: Table) -> Iterable[Warned]:
    if table.trained_here and table.accuracy is None:
        yield Warned(
            "The accuracy of the features' classifier is unknown, since no images are held out. "
            "Set data.held_out to measure it.",
            (*table.in_features, "score", "accuracy"),
        )


def _other_task(table: Table) -> Iterable[Warned]:
    if table.task != "classes":
        yield Warned(
            "The images have no classes, so the features are those of a small network that was "
            "trained here to tell how far an image was turned. Use features of a large data set "
            "(--features, evaluate.features) for figures to report.",
            table.in_features,
        )


def _weak_teacher(table: Table) -> Iterable[Warned]:
    precision = max((r["precision"] for r in table.teachers if r["precision"] is not None),
                    default=None)  # fmt: skip
    accuracy = max((r["accuracy"] for r in table.teachers if r["accuracy"] is not None),
                   default=None)  # fmt: skip
    faults = []
    if precision is not None and precision < LITTLE:
        faults.append(f"{precision:.0%} of its samples lie among the training images (precision)")
    if accuracy is not None and table.accuracy and accuracy < LITTLE * table.accuracy:
        faults.append(f"the classifier recognises {accuracy:.0%} of its samples")
    if faults:
        yield Warned(
            f"The teacher itself is weak: at best {' and '.join(faults)}. A student that is near "
            "to it is as weak, whatever its distance to the teacher.",
            (RMS,),
        )


def _below_teacher(table: Table) -> Iterable[Warned]:
    fd = table.fd
    known = {r["w"]: r[fd] for r in table.teachers if r[fd] is not None}
    names = {r["model"] for r in table.teachers}
    rows = table.where(
        lambda r: (
            r["model"] not in names
            and r["w"] in known
            and r[fd] is not None
            and r[fd] < known[r["w"]]
        )
    )
    if rows:
        yield Warned(
            f"A lower {fd} than the teacher's at the same w is no proof of better images: compare "
            "variance and recall first.",
            (fd,),
            rows,
        )


def _unpaired(table: Table) -> Iterable[Warned]:
    rows = table.where(lambda r: r["sampler"] == NOISY and r[RMS] is not None)
    if rows:
        yield Warned(
            "The stochastic sampler adds noise of its own, so its images are not paired with the "
            "teacher's and their paired distance means nothing.",
            (RMS,),
            rows,
        )


RULES: tuple[Callable[[Table], Iterable[Warned]], ...] = (
    _few_samples,
    _few_images,
    _few_held_out,
    _weak_classifier,
    _unknown_classifier,
    _other_task,
    _weak_teacher,
    _below_teacher,
    _unpaired,
)


def warnings_of(table: Table) -> list[Warned]:
    """Return the warnings about a table, in the order of `RULES`; none for an empty table."""
    if not table.rows:
        return []
    return [warned for rule in RULES for warned in rule(table)]


def marks_of(warnings: Sequence[Warned]) -> dict[tuple[int | None, str], list[int]]:
    """Return the numbers of the warnings about each figure: (row or None, key) -> numbers."""
    out: dict[tuple[int | None, str], list[int]] = {}
    for number, warned in enumerate(warnings, 1):
        for key in warned.keys:
            for row in (None,) if warned.rows is None else warned.rows:
                out.setdefault((row, key), []).append(number)
    return out


def reasons_of(rows: Sequence[Row], missing: Sequence[Mapping[str, str]]) -> list[str]:
    """Return a sentence for each reason that figures of a table are missing.

    missing: of each row, the reason of each figure that is None.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for i, (row, reasons) in enumerate(zip(rows, missing, strict=True)):
        for key, reason in reasons.items():
            if key in row and row[key] is None:
                found.setdefault(reason, {}).setdefault(key, []).append(i)
    out = []
    for reason, keys in found.items():
        places = sorted({i for where in keys.values() for i in where})
        said = _finish(reason)
        out.append(f"{', '.join(keys)} ({_where(rows, places)}): {said}")
    return out


def _finish(reason: str) -> str:
    text = reason[:1].upper() + reason[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _where(rows: Sequence[Row], places: Sequence[int]) -> str:
    if len(places) == len(rows):
        return "every row"
    names = list(dict.fromkeys(_name(rows[i]) for i in places))
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _name(row: Row) -> str:
    if row["sampler"] is None:
        return str(row["model"])
    return f"{row['model']}, {row['sampler']}, {row['steps']} steps"
