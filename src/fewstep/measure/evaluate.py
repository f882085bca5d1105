"""Measure models cell by cell: one cell is a model, a sampler, a number of steps and a w.

Every cell draws the same noise and the same conditions, so that distances between cells are paired.
Its figures are kept in a database and its images beside it, under the hash of everything they
depend on: what is kept is not measured again, and a cell of another model, seed, data or features
is another cell.

    folder/results.sqlite            one row per cell
    folder/cells/<key>.safetensors   its images
    folder/features/                 features that were trained for these images
    folder/reference/<key>.safetensors  the training images as the features see them
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fewstep.core.denoiser import Guided, cheapest, traits_of
from fewstep.core.samplers import get_sampler
from fewstep.data import DataConfig, Dataset, open_dataset
from fewstep.errors import DataError, EmptySplitError
from fewstep.limit import is_time_up, stop_when_time_is_up
from fewstep.measure.cell import DDIM, Cell
from fewstep.measure.conditions import Conditions
from fewstep.measure.database import Inputs, Record, Results, key_of, what_changed
from fewstep.measure.drawing import How
from fewstep.measure.identity import identity_of
from fewstep.measure.images import BYTES, KEPT, ImageFile
from fewstep.measure.measured import draw_and_measure
from fewstep.measure.origin import origin
from fewstep.measure.own_features import features_of
from fewstep.measure.redrawn import NOT_DRAWN, Redrawn
from fewstep.measure.reference import MOST, everything, reference_of
from fewstep.measure.room import check_disk
from fewstep.measure.solvers import SOLVERS
from fewstep.metrics import (
    FD_TO_TEACHER,
    RMS,
    Features,
    Reference,
    measure_all,
)
from fewstep.models import Model
from fewstep.train import agreed, is_main, main_first

Split = tuple[Tensor, Tensor]
REAL = "These are real images, which no model has drawn."


def quiet(_line: str) -> None:
    """Print nothing."""


@dataclass(frozen=True)
class Evaluation:
    """What all cells of one evaluation share, and the way to measure one.

    Attributes:
        data: the images that the models were trained on.
        folder: where results, cells and features are kept.
        samples: images per cell; classes go round in turn, captions are those of real images.
        seed: of the noise.
        batch_size: of sampling.
        features_path: folder of a transformers vision model, or a weights file of the published
            Inception, as the feature extractor; None takes the digits' own features for them, and
            otherwise a classifier that is trained here on the data when it is first needed.
        device: of the features and the text encoders.
        say: called with a line per cell.
        every: whether distances of distributions are to every image of the data, held-out ones
            too, and not to 50,000 training images at most.
    """

    data: DataConfig
    folder: Path
    samples: int = 2000
    seed: int = 0
    batch_size: int = 500
    features_path: Path | None = None
    device: str = "cpu"
    say: Callable[[str], None] = quiet
    every: bool = False

    @cached_property
    def dataset(self) -> Dataset:
        """The training images as a data set."""
        return open_dataset(self.data, "train")

    @cached_property
    def train(self) -> Split:
        """The training images and their classes: all, or 50,000 evenly chosen."""
        return everything(self.dataset)

    @cached_property
    def held_out_dataset(self) -> Dataset | None:
        """The held-out images as a data set; None where there are none."""
        try:
            found = open_dataset(self.data, "held-out")
        except EmptySplitError:
            return None
        return found if len(found) else None

    @cached_property
    def held_out(self) -> Split:
        """The held-out images and their classes: all, or 50,000 evenly chosen.

        Raises DataError where there are none.
        """
        if self.held_out_dataset is None:
            raise DataError(
                f"{Path(self.data.name).name} must have held-out images, got 0. Set data.held_out "
                "to the share of images to hold out, for example 0.05."
            )
        return everything(self.held_out_dataset)

    @cached_property
    def features(self) -> Features:
        """The feature extractor; one of this data is trained when it is first needed, and kept."""
        return features_of(self)

    @cached_property
    def reference(self) -> Reference:
        """The training images, as the metrics see them; extracted once and kept in the folder."""
        folder = self.folder / "reference"
        splits = [self.dataset]
        if self.every and self.held_out_dataset is not None:
            splits.append(self.held_out_dataset)
        return reference_of(splits, lambda: self.train[0], self.features, folder, every=self.every)

    @cached_property
    def conditions(self) -> Conditions:
        """The conditions of the samples, the same in every cell."""
        return Conditions(self.data, self.dataset, self.samples, self.device)

    @property
    def labels(self) -> Tensor | None:
        """The classes of the samples (samples,); None where the images have no classes."""
        return self.conditions.labels

    @cached_property
    def results(self) -> Results:
        """The database of the cells."""
        return Results(self.folder / "results.sqlite")

    def held_out_cell(self) -> Cell | None:
        """Return the held-out images' own figures, what real data score; None without any."""
        if self.held_out_dataset is None:
            return None
        count = min(len(self.held_out_dataset), MOST)
        inputs = self.inputs("held-out", {}, None, None, None) | {"seed": None, "samples": count}
        found = self.results.get(key_of(inputs))
        if found is None:
            x, labels = self.held_out
            known = None if self.labels is None else labels
            measured = measure_all(x, known, features=self.features, reference=self.reference)
            found = self.keep(inputs, 0, measured.figures.by_name, measured.missing, None)
        return _cell(found, None, REAL, REAL)

    def cell(
        self,
        name: str,
        model: Model | Guided,
        *,
        w: float,
        steps: int | None = None,
        sampler: str | None = None,
        teacher: Cell | None = None,
        redrawn: Redrawn | None = None,
    ) -> Cell:
        """Return the cell, measured now or kept from before.

        name: of the model in the table. sampler: one of `fewstep.core.samplers.SAMPLERS` or of
        `fewstep.measure.solvers.SOLVERS`. teacher: the cell of the many-step teacher at the same
        w, which the paired distance refers to. redrawn: that teacher's samples of another seed; a
        kept cell without the distance to them gets it. Images that are not finite give a cell
        without figures. Raises RangeError as `fewstep.sample` does.
        """
        self._open_features()
        traits = traits_of(model)
        steps = steps or (traits.steps or (0,))[0]
        sampler = sampler or traits.sampler or DDIM
        inputs = self.inputs(name, identity_of(model), sampler, steps, w)
        inputs["teacher"] = None if teacher is None else teacher.key
        inputs["condition"] = self.conditions.kind(model)
        if self.samples > KEPT:  # earlier versions compared floats here
            inputs["paired"] = BYTES
        key = key_of(inputs)
        path = self.folder / "cells" / f"{key[:32]}.safetensors"
        found = None
        if is_main() and ImageFile(path).is_whole:
            found = self.results.get(key)
        found = agreed(found)
        if found is None:
            check_disk(self.samples, self.dataset.shape, "samples", self.folder)
            _ = self.reference  # which all processes make together
            found = agreed(self._measure(model, inputs, teacher, redrawn, path))
            assert found is not None
            cell = f"the cell of {name} at {steps} steps and w = {w:g}"
            stop_when_time_is_up(cell, agreed(is_time_up()))
        if redrawn is not None:
            found = agreed(redrawn.added_to(found, path))
        return _cell(found, path, "No teacher was given to compare with.", NOT_DRAWN)

    def open(self) -> None:
        """Make the features and the reference; all processes of a run call this together."""
        self._open_features()
        _ = self.reference

    def _open_features(self) -> None:
        with main_first():  # which decodes the images and trains the features
            _ = self.dataset, self.features

    def _measure(
        self,
        model: Model | Guided,
        inputs: Inputs,
        teacher: Cell | None,
        redrawn: Redrawn | None,
        path: Path,
    ) -> Record | None:
        """Draw a cell and keep its images and figures; return its record in the main process."""
        w, steps, sampler = inputs["w"], inputs["steps"], inputs["sampler"]
        how = How(sampler, steps, w, self.seed)
        found = draw_and_measure(self, model, how, path, teacher, redrawn)
        if found is None:
            return None
        known = self.results.get(key_of(inputs))
        if known is not None:  # only its images were lost
            return known
        (figures, missing), seconds = found
        name = inputs["model"]
        again = what_changed(self.results.like(name, inputs), inputs)
        spent = _evaluations(model, w, steps, sampler)
        record = self.keep(inputs, spent, figures.by_name, missing, seconds)
        shown = "none" if figures.fd is None else f"{figures.fd:.3f}"
        count = f"{steps} step{'' if steps == 1 else 's'}"
        self.say(f"{name} {sampler} {count}, w = {w:g}: {figures.fd_name} {shown}{again}")
        return record

    def inputs(
        self,
        name: str,
        identity: Inputs,
        sampler: str | None,
        steps: int | None,
        w: float | None,
    ) -> Inputs:
        """Return everything that a cell's figures depend on; `key_of` it is the cell's key.

        identity: of the model, as `identity_of` returns it.
        """
        return {
            "model": name,
            "sampler": sampler,
            "steps": steps,
            "w": w,
            **identity,
            "samples": self.samples,
            "seed": self.seed,
            "data": self.dataset.content_hash(),
            "features": self.features.sha256,
            **({"every": True} if self.every else {}),
        }

    def keep(
        self,
        inputs: Inputs,
        evaluations: int,
        figures: Mapping[str, float | None],
        missing: Mapping[str, str],
        seconds: float | None,
    ) -> Record:
        """Write a measured cell into the database; return its record."""
        record = Record(
            key=key_of(inputs),
            model=inputs["model"],
            weights_sha256=inputs.get("weights"),
            sampler=inputs["sampler"],
            steps=inputs["steps"],
            evaluations=evaluations,
            w=inputs["w"],
            samples=inputs["samples"],
            seed=inputs["seed"],
            data=Path(self.data.name).name,
            data_sha256=inputs["data"],
            features=self.features.name,
            features_sha256=inputs["features"],
            seconds_per_image=seconds,
            images_per_second=None if not seconds else 1 / seconds,
            figures=figures,
            missing=missing,
            asked=inputs,
            **origin(self.device),
        )
        self.results.put(record)
        return record


def _evaluations(model: Model | Guided, w: float, steps: int, sampler: str) -> int:
    """Return the network evaluations per image."""
    asking = cheapest(model, torch.tensor([w]))
    if sampler in SOLVERS:
        return steps * asking.passes
    return get_sampler(sampler).evaluations(asking, traits_of(model).clock(steps))


def _cell(found: Record, path: Path | None, rms: str, fd: str) -> Cell:
    """Return the cell of a record. rms, fd: why it may have no such distance to the teacher."""
    missing = dict(found.missing)
    for name, reason in ((RMS, rms), (FD_TO_TEACHER, fd)):
        if found.figures.get(name) is None:
            missing.setdefault(name, reason)
    return Cell.of(vars(found), found.figures, missing=missing, key=found.key, path=path)
