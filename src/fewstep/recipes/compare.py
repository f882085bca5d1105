"""A comparison of model folders: which cells to measure, checked before anything is drawn."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fewstep.atomic import atomic_write
from fewstep.core.grid import cosine
from fewstep.data import DataConfig, Dataset
from fewstep.distill.plan import STAGE_ONE, TEACHER
from fewstep.errors import FolderError, RangeError, ShapeError
from fewstep.files.hub import local
from fewstep.folders import card_in, image_shape, load
from fewstep.measure.cell import DDIM, Cell, Cells
from fewstep.measure.conditions import has_classes
from fewstep.measure.evaluate import Evaluation
from fewstep.measure.identity import identity_of
from fewstep.measure.redrawn import Redrawn
from fewstep.measure.solvers import SOLVERS
from fewstep.models import Card, card_of
from fewstep.models.clocks.native import TIMESTEPS
from fewstep.models.scheduler import StockClock
from fewstep.recipes.check import check_steps, nearest_divisor, timesteps_in
from fewstep.show.figures import remarks_on, terminal_page, write_figures

ROLES = {"pretraining": TEACHER, "guidance-distillation": STAGE_ONE}


@dataclass(frozen=True)
class Column:
    """A model, how it is called in the table, and the samplers and steps to measure it with."""

    folder: Path
    name: str
    cells: tuple[tuple[int, str | None], ...]


@dataclass(frozen=True)
class Comparison:
    """What `fewstep evaluate` is asked for.

    Attributes:
        models: folders, each once.
        ws: guidance weights.
        counts, samplers: for models that accept any; None where they are not given.
        teacher: folder of the many-step teacher; None for no paired distances.
        reference_steps: of that teacher; a default that its clock does not have is replaced.
        reference_given: whether it is no default.
        fd_to_teacher: whether to measure the distance to the teacher's samples of another seed.
    """

    models: tuple[Path, ...]
    ws: tuple[float, ...]
    counts: tuple[int, ...] | None
    samplers: tuple[str, ...] | None
    teacher: Path | None
    reference_steps: int
    reference_given: bool = False
    fd_to_teacher: bool = True

    @cached_property
    def cards(self) -> list[Card]:
        """The cards of the models. Raises FolderError where one is none."""
        return [card_in(folder) for folder in self.models]

    def columns(self, say: Callable[[str], None]) -> list[Column]:
        """Return what to measure. Raises RangeError for what a model was not made for."""
        if self.counts == () or not self.ws:
            raise RangeError("--steps and --w must be at least one number each. Pass some.")
        self._check_w()
        self._check_teacher()
        free = [card for card in self.cards if not card.stage.counts]
        if free and self.counts is None:
            raise RangeError(
                f"{free[0].name} accepts any number of steps: pass some, for example --steps 64."
            )
        names = self._names()
        out = []
        for folder, card, name in zip(self.models, self.cards, names, strict=True):
            if card.direction == "encode":
                raise RangeError(
                    f"{card.name} encodes images and draws none, so there is nothing to compare "
                    "with images. Use `fewstep roundtrip`."
                )
            cells = self._own(card) if card.stage.counts else self._free_cells(folder, card)
            if card.stage.counts and free and (self.counts or self.samplers):
                shown = ", ".join(str(n) for n, _ in cells)
                say(f"{name}: measured with the {shown} steps that it was made for")
            out.append(Column(folder, name, cells))
        return out

    def _check_w(self) -> None:
        cards = [*self.cards, *([] if self.teacher is None else [card_in(self.teacher)])]
        for card in cards:
            low, high = card.w_range or (-float("inf"), float("inf"))
            outside = [w for w in self.ws if not low <= w <= high]
            if outside:
                raise RangeError(
                    f"--w must lie in [{low:g}, {high:g}], the range that {card.name} was trained "
                    f"for, got {outside[0]:g}. Choose values inside it."
                )

    def _check_teacher(self) -> None:
        if self.teacher is None:
            return
        card = card_in(self.teacher)
        if card.stage.counts:
            made_for = ", ".join(map(str, card.stage.counts))
            raise RangeError(
                f"--teacher must be a model that accepts any number of steps, and {card.name} was "
                f"made for {made_for}. Give a teacher."
            )
        if card.sampler not in (None, DDIM):
            raise RangeError(
                f"--teacher must be a model for any deterministic sampler, and {card.name} was "
                f"made for {card.sampler!r}. Give the teacher that it was made from."
            )
        self.steps_of_teacher(lambda _: None)

    def _own(self, card: Card) -> tuple[tuple[int, str | None], ...]:
        """Return the cells of a student; what is asked for must be those, if it is for it."""
        own, asked = card.stage.counts, self.counts
        alone = all(c.stage.counts for c in self.cards)
        if alone and asked is not None and not set(asked) <= set(own):
            shown = " or ".join(map(str, own))
            raise RangeError(
                f"--steps must be {shown}, the number of steps that {card.name} was made for, "
                f"got {', '.join(map(str, asked))}. Leave --steps out, or give the student "
                "of another number."
            )
        if alone and self.samplers is not None and self.samplers != (card.sampler,):
            raise RangeError(
                f"--sampler must be {card.sampler}, the sampler that {card.name} was made for, got "
                f"{', '.join(self.samplers)}. Leave --sampler out."
            )
        chosen = [n for n in own if asked is None or n in asked]
        return tuple((n, None) for n in chosen or own)

    def _free_cells(self, folder: Path, card: Card) -> tuple[tuple[int, str | None], ...]:
        timesteps = timesteps_in(folder)
        pairs = [(n, s) for n in self.counts or () for s in self.samplers or (None,)]
        for steps, sampler in pairs:
            _check_steps(steps, sampler, timesteps, f"--steps for {card.name}")
        return tuple(pairs)

    def _names(self) -> list[str]:
        """Return the models' names in the table, all different."""
        uses = Counter(card.name for card in self.cards)
        out: list[str] = []
        for folder, card in zip(self.models, self.cards, strict=True):
            name = card.name
            if uses[name] > 1:
                name = f"{name} ({_short_hash(folder, card)})"
            if name in out:
                raise FolderError(
                    f"every model must be given once, and {folder} has the same name and weights "
                    "as another one. Leave one of them out."
                )
            out.append(name)
        return out

    def check_images(self, images: Dataset, config: DataConfig) -> None:
        """Raise an error unless all models draw images of one shape, and of the images' classes.

        RangeError: a class-conditional model has fewer classes than the images; ShapeError.
        """
        classes = images.num_classes if has_classes(images, config) else 0
        folders = [*self.models, *([] if self.teacher is None else [self.teacher])]
        for folder in folders:
            card = card_in(folder)
            shape = image_shape(local(folder), card)
            if shape != images.shape:
                raise ShapeError(
                    f"all models must draw images of the shape of those that they are compared "
                    f"with, {images.shape}, and {card.name} draws {shape}. Leave it out."
                )
            if 0 < card.num_classes < classes:
                raise RangeError(
                    f"the images may have at most {card.num_classes} classes, those that "
                    f"{card.name} was trained on, got {classes}. Use --reference with "
                    "other images."
                )

    def steps_of_teacher(self, say: Callable[[str], None]) -> int:
        """Return the steps of the teacher. Raises RangeError where its clock does not have them."""
        assert self.teacher is not None
        steps, timesteps = self.reference_steps, timesteps_in(self.teacher)
        total = None if timesteps is None else len(timesteps)
        if total is not None and not self.reference_given and total % steps:
            steps = nearest_divisor(steps, total)
            say(f"--reference-steps: {steps}, since 256 does not divide {total} timesteps")
        _check_steps(steps, None, timesteps, "--reference-steps")
        return steps


def _check_steps(
    steps: int, sampler: str | None, timesteps: StockClock | None, option: str
) -> None:
    total = TIMESTEPS if timesteps is None else len(timesteps)
    if sampler in SOLVERS:
        if not 1 <= steps <= total:
            raise RangeError(f"{option} must be from 1 to {total} for {sampler}, got {steps}.")
        return
    check_steps(steps, cosine if timesteps is None else timesteps.grid, option, RangeError)


def _short_hash(folder: Path, card: Card) -> str:
    found = card.weights_sha256 or str(identity_of(load(folder))["weights"])
    return found[:6]


@dataclass(frozen=True)
class Compared:
    """The measured cells, those of the teacher, and the roles of the models."""

    cells: Cells
    teachers: list[Cell]
    roles: dict[str, str]


def compare(evaluation: Evaluation, comparison: Comparison, columns: Sequence[Column]) -> Compared:
    """Measure every column at every w; the teacher's cells come first.

    All processes of a run must call this; they share the work.
    """
    evaluation.open()
    teachers: dict[float, Cell] = {}
    redrawn: dict[float, Redrawn] = {}
    if comparison.teacher is not None:
        steps = comparison.steps_of_teacher(evaluation.say)
        guide = load(comparison.teacher, evaluation.device)
        others = comparison.ws if comparison.fd_to_teacher else ()
        redrawn = {w: Redrawn(evaluation, guide, DDIM, steps, w) for w in others}
        for w in comparison.ws:
            again = redrawn.get(w)
            teachers[w] = evaluation.cell(TEACHER, guide, w=w, steps=steps, redrawn=again)
    cells, roles = [], {TEACHER: TEACHER}
    for column in columns:
        model = load(column.folder, evaluation.device)
        roles[column.name] = ROLES.get(card_of(model).stage.kind, "student")
        for w in comparison.ws:
            for steps, sampler in column.cells:
                cells.append(
                    evaluation.cell(
                        column.name,
                        model,
                        w=w,
                        steps=steps,
                        sampler=sampler,
                        teacher=teachers.get(w),
                        redrawn=redrawn.get(w),
                    )
                )
    return Compared(Cells(cells), list(teachers.values()), roles)


def write_comparison(evaluation: Evaluation, compared: Compared) -> tuple[str, Path]:
    """Write evaluation.json, tables, plots and sheets; return the table as text, and the first.

    The same cells give the same bytes, whenever they were measured.
    """
    cells = compared.cells
    remarks = remarks_on(cells, compared.teachers, evaluation, compared.roles)
    write_figures(evaluation.folder, cells, remarks)
    path = evaluation.folder / "evaluation.json"
    atomic_write(path, (json.dumps(cells.rows, indent=1, allow_nan=False) + "\n").encode())
    return terminal_page(cells, remarks), path


__all__ = ["Column", "Compared", "Comparison", "compare", "write_comparison"]
