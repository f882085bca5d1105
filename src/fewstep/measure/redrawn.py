"""The teacher's samples, drawn again with another seed: what `fd_to_teacher` compares with."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save

from fewstep.atomic import atomic_write
from fewstep.core.denoiser import Guided
from fewstep.core.seed import derive
from fewstep.errors import NonFiniteError
from fewstep.limit import is_time_up, stop_when_time_is_up
from fewstep.measure.database import Record, key_of
from fewstep.measure.dealing import dealt
from fewstep.measure.drawing import How, drawer
from fewstep.measure.identity import identity_of
from fewstep.measure.images import KEPT, ImageFile
from fewstep.measure.reference import tensors_in
from fewstep.measure.room import at_once
from fewstep.metrics import (
    FD_TO_TEACHER,
    Moments,
    RunningMoments,
    extract,
    frechet_distance,
    moments,
)
from fewstep.models import Model
from fewstep.train import agreed, is_main

if TYPE_CHECKING:
    from fewstep.measure.evaluate import Evaluation

NOT_FINITE = "The teacher's samples of another seed are infinite or not a number."
NOT_DRAWN = "No teacher's samples of another seed were drawn to compare with."
NOT_KEPT = (
    f"The cell was measured without it, and of its images only the first {KEPT:,} are kept. Remove "
    "results.sqlite, or use another folder, to measure all cells again."
)
SEEN = {"mean", "cov", "count"}


@dataclass(frozen=True)
class Redrawn:
    """The many-step teacher's samples at one w, of another seed than those of the cells.

    As many as a cell has, under the same conditions. They are drawn when a cell first needs them,
    and only the mean and covariance of their features are kept, in the folder `reference`.

    Attributes:
        evaluation: that the cells belong to.
        model: the teacher.
        sampler, steps, w: how it draws.
    """

    evaluation: Evaluation
    model: Model | Guided
    sampler: str
    steps: int
    w: float

    @cached_property
    def moments(self) -> Moments | None:
        """The moments of their features; all processes must ask for them together.

        None where the samples are infinite or not a number, and in all processes but the main one.
        """
        evaluation, seed = self.evaluation, derive(self.evaluation.seed, FD_TO_TEACHER)
        identity = identity_of(self.model)
        inputs = evaluation.inputs("", identity, self.sampler, self.steps, self.w)
        inputs |= {"seed": seed, "condition": evaluation.conditions.kind(self.model)}
        path = evaluation.folder / "reference" / f"{key_of(inputs)[:32]}.safetensors"
        found = tensors_in(path) if is_main() else {}
        if agreed(found.keys() >= SEEN):
            return Moments(found["mean"], found["cov"], int(found["count"])) if found else None
        made, drawn = None, f"the teacher's {self.steps} steps with another seed at w = {self.w:g}"
        with suppress(NonFiniteError):
            made = self._draw(How(self.sampler, self.steps, self.w, seed))
        if made is not None:
            kept = {"mean": made.mean, "cov": made.cov, "count": torch.tensor(made.count)}
            atomic_write(path, save({k: v.contiguous() for k, v in kept.items()}))
            evaluation.say(f"{FD_TO_TEACHER}: drew the samples of {drawn}")
        stop_when_time_is_up(f"the samples of {drawn}", agreed(is_time_up()))
        return made

    def _draw(self, how: How) -> Moments | None:
        """Draw all samples; return the moments of their features in the main process.

        Raises NonFiniteError where samples are not finite, in every process, or features are not.
        """
        evaluation = self.evaluation
        draw = drawer(self.model, how, evaluation.conditions, evaluation.features)
        size, running = at_once(evaluation.batch_size, evaluation.dataset.shape), RunningMoments()
        with evaluation.conditions.opened(self.model):
            for turn in dealt(evaluation.samples, size, draw):
                for _, drawn in turn:
                    running.add(drawn.seen.features)
        return running.moments() if is_main() else None

    def added_to(self, found: Record, path: Path) -> Record:
        """Return the record of a kept cell with `fd_to_teacher`, where it was measured without.

        All processes must call this; the record of the main one counts. The cell itself is not
        drawn again: one of more images than are kept stays without the figure.

        path: the file of its images.
        """
        if found.figures.get(FD_TO_TEACHER) is not None or FD_TO_TEACHER in found.missing:
            return found
        if self.evaluation.samples > KEPT:
            return replace(found, missing={**found.missing, FD_TO_TEACHER: NOT_KEPT})
        theirs = self.moments
        if not is_main():
            return found
        images, value, missing = ImageFile(path).first(), None, dict(found.missing)
        try:
            if theirs is None:
                raise NonFiniteError(NOT_FINITE)
            if not len(images):
                raise NonFiniteError("The samples are infinite or not a number.")
            seen = extract(self.evaluation.features, images).features
            value = frechet_distance(moments(seen), theirs)
        except NonFiniteError as error:
            missing[FD_TO_TEACHER] = f"{error}"
        figures = {**found.figures, FD_TO_TEACHER: value}
        made = replace(found, figures=figures, missing=missing)
        self.evaluation.results.put(made)
        return made
