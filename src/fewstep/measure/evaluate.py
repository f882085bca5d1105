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

import datetime
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

import fewstep
from fewstep.atomic import atomic_write
from fewstep.core.denoiser import Guided, cheapest, traits_of
from fewstep.core.sample import sample
from fewstep.core.samplers import get_sampler
from fewstep.data import DataConfig, Dataset, open_dataset
from fewstep.errors import DataError, NonFiniteError
from fewstep.folders import to_images
from fewstep.measure.conditions import Conditions, evenly
from fewstep.measure.database import Results, key_of, what_changed
from fewstep.measure.identity import identity_of
from fewstep.measure.own_features import features_of
from fewstep.measure.room import fits
from fewstep.metrics import (
    Features,
    Measured,
    Moments,
    Reference,
    distance_key,
    measure_all,
    no_figures,
)
from fewstep.models import Model
from fewstep.models.solvers import SOLVERS, solve

Row = dict[str, Any]
Split = tuple[Tensor, Tensor]
IMAGES = "images"
REFERENCE = 50_000
SEEN = {"mean", "cov", "count", "features"}
KEPT = 2_000  # images of a cell that nothing is paired with
RMS = "rms_to_teacher"
FIGURES = ("precision", "recall", "score", "accuracy", "variance", "nearest", RMS)


def quiet(_line: str) -> None:
    """Print nothing."""


@dataclass(frozen=True)
class Cell:
    """A measured cell.

    Attributes:
        row: its figures, as reports have them; None where one could not be measured.
        key: the hash of everything that it depends on.
        path: of its images.
        missing: the reason of each figure that is None.
    """

    row: Row
    key: str
    path: Path
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> Tensor:
        """The images (B, *D) in [-1, 1] on the disk: the first 2,000, or all of a reference.

        B is 0 where the images of the model were not finite.
        """
        return load_file(self.path)[IMAGES]


@dataclass(frozen=True)
class Evaluation:
    """What every cell of a table shares.

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
    """

    data: DataConfig
    folder: Path
    samples: int = 2000
    seed: int = 0
    batch_size: int = 500
    features_path: Path | None = None
    device: str = "cpu"
    say: Callable[[str], None] = quiet

    @cached_property
    def source(self) -> Dataset:
        """The training images as a data set."""
        return open_dataset(self.data, "train")

    @cached_property
    def train(self) -> Split:
        """The training images and their classes: all, or 50,000 evenly chosen."""
        return _everything(self.source)

    @cached_property
    def held_out_source(self) -> Dataset | None:
        """The held-out images as a data set; None where there are none."""
        if not len(self.source):  # opened first, so that a fault of the data is not hidden
            return None
        try:
            found = open_dataset(self.data, "held-out")
        except DataError:
            return None
        return found if len(found) else None

    @cached_property
    def held_out(self) -> Split:
        """The held-out images and their classes: all, or 50,000 evenly chosen.

        Raises DataError where there are none.
        """
        if self.held_out_source is None:
            raise DataError(
                f"{Path(self.data.name).name} must have held-out images, got 0. Set data.held_out "
                "to the share of images to hold out, for example 0.05."
            )
        return _everything(self.held_out_source)

    @cached_property
    def features(self) -> Features:
        """The feature extractor; one of this data is trained when it is first needed, and kept."""
        return features_of(self)

    @cached_property
    def reference(self) -> Reference:
        """The training images, as the metrics see them; extracted once and kept in the folder."""
        features = self.features
        count = min(len(self.source), REFERENCE)
        images = self.train[0] if fits(count, self.source.shape) else None
        key = key_of({"data": self._data_sha256, "features": features.sha256})
        path = self.folder / "reference" / f"{key[:32]}.safetensors"
        found = _tensors(path)
        if found.keys() >= SEEN:
            known = Moments(found["mean"], found["cov"], int(found["count"]))
            return Reference(features.name, known, images, found["features"])
        if images is not None:
            made = Reference.build(images, features)
        else:
            made = Reference.of_batches(_batches(self.source), features, None)
        if made.moments is not None:
            kept = {"mean": made.moments.mean, "cov": made.moments.cov, "features": made.features}
            kept["count"] = torch.tensor(made.moments.count)
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, save({k: v.contiguous() for k, v in kept.items()}))
        return made

    @cached_property
    def conditions(self) -> Conditions:
        """The conditions of the samples, the same in every cell."""
        return Conditions(self.data, self.source, self.samples, self.device)

    @property
    def labels(self) -> Tensor | None:
        """The classes of the samples (samples,); None where the images have no classes."""
        return self.conditions.labels

    @cached_property
    def results(self) -> Results:
        """The database of the rows."""
        return Results(self.folder / "results.sqlite")

    def held_out_cell(self) -> Cell | None:
        """Return the held-out images' own figures, what real data score; None without any."""
        if self.held_out_source is None:
            return None
        count = min(len(self.held_out_source), REFERENCE)
        asked = self.asked("held-out", {}, None, None, None) | {"seed": None, "samples": count}
        found = self.results.get(key_of(asked))
        if found is None:
            x, labels = self.held_out
            known = None if self.labels is None else labels
            measured = measure_all(x, known, features=self.features, reference=self.reference)
            found = self.keep("held-out", asked, 0, measured, None)
        missing = {**found["missing"], RMS: "These are real images, which no model has drawn."}
        return Cell(_row(found), found["key"], self.folder / "cells" / "none", missing)

    def cell(
        self,
        name: str,
        model: Model | Guided,
        *,
        w: float,
        steps: int | None = None,
        sampler: str | None = None,
        teacher: Cell | None = None,
    ) -> Cell:
        """Return the cell, measured now or kept from before.

        name: of the model in the table. sampler: one of `fewstep.core.samplers.SAMPLERS` or of
        `fewstep.models.solvers.SOLVERS`. teacher: the cell of the many-step teacher at the same
        w, which the paired distance refers to. Images that are not finite give a cell without
        figures. Raises RangeError as `fewstep.sample` does.
        """
        traits = traits_of(model)
        steps = steps or (traits.steps or (0,))[0]
        sampler = sampler or traits.sampler or "deterministic"
        asked = self.asked(name, identity_of(model), sampler, steps, w)
        asked["teacher"] = None if teacher is None else teacher.key
        asked["condition"] = self.conditions.kind(model)
        key = key_of(asked)
        path = self.folder / "cells" / f"{key[:32]}.safetensors"
        found = self.results.get(key)
        if found is None or IMAGES not in _tensors(path):
            found = self._measure(name, model, asked, teacher, path)
        missing = dict(found["missing"])
        if found["figures"].get(RMS) is None:
            missing.setdefault(RMS, "No teacher was given to compare with.")
        return Cell(_row(found) | {"model": name}, key, path, missing)

    def _measure(
        self, name: str, model: Model | Guided, asked: Row, teacher: Cell | None, path: Path
    ) -> Row:
        """Draw a cell, keep its images and figures, and return its row of the database."""
        w, steps, sampler = asked["w"], asked["steps"], asked["sampler"]
        started = time.perf_counter()
        try:
            images = self._draw(model, w, steps, sampler)
            seconds = (time.perf_counter() - started) / self.samples
            measured = self._figures(images, self.conditions.labels_for(model), teacher)
        except NonFiniteError as error:
            images, seconds = torch.empty((0, *self.source.shape)), None
            measured = no_figures(self.features, f"{error}")
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = images if teacher is None else images[:KEPT]
        atomic_write(path, save({IMAGES: kept.contiguous()}))
        known = self.results.get(key_of(asked))
        if known is not None:  # only its images were lost
            return known
        again = what_changed(self.results.like(name, asked), asked)
        found = self.keep(name, asked, _evaluations(model, w, steps, sampler), measured, seconds)
        fd = distance_key(found["figures"])
        value = found["figures"][fd]
        shown = "none" if value is None else f"{value:.3f}"
        self.say(f"{name} {sampler} {steps} steps, w = {w:g}: {fd} {shown}{again}")
        return found

    def _draw(self, model: Model | Guided, w: float, steps: int, sampler: str) -> Tensor:
        shared: dict[str, Any] = {"w": w, "steps": steps, "seed": self.seed}
        shared["batch_size"] = self.batch_size
        cond = self.conditions.of(model)
        if sampler in SOLVERS:
            states = solve(model, cond, solver=sampler, **shared)
        else:
            states = sample(model, cond, sampler=sampler, **shared)
        return to_images(model, states).cpu()

    def _figures(self, images: Tensor, labels: Tensor | None, teacher: Cell | None) -> Measured:
        theirs = None if teacher is None else teacher.images
        lost = theirs is not None and len(theirs) < len(images)
        measured = measure_all(
            images,
            labels,
            features=self.features,
            reference=self.reference,
            teacher_samples=None if lost else theirs,
        )
        if lost:
            measured.missing[RMS] = "The images of the teacher are infinite or not a number."
        return measured

    def asked(
        self,
        name: str,
        identity: Row,
        sampler: str | None,
        steps: int | None,
        w: float | None,
    ) -> Row:
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
            "data": self._data_sha256,
            "features": self.features.sha256,
        }

    @cached_property
    def _data_sha256(self) -> str:
        return self.source.content_hash()

    def keep(
        self, name: str, asked: Row, evaluations: int, measured: Measured, seconds: float | None
    ) -> Row:
        """Write a measured cell into the database; return its row."""
        now = datetime.datetime.now(datetime.timezone.utc)
        row = {
            "key": key_of(asked),
            "created": now.isoformat(timespec="seconds"),
            "model": name,
            "weights_sha256": asked.get("weights"),
            "sampler": asked["sampler"],
            "steps": asked["steps"],
            "evaluations": evaluations,
            "w": asked["w"],
            "samples": asked["samples"],
            "seed": asked["seed"],
            "data": Path(self.data.name).name,
            "data_sha256": asked["data"],
            "features": self.features.name,
            "features_sha256": asked["features"],
            "seconds_per_image": seconds,
            "images_per_second": None if not seconds else 1 / seconds,
            "figures": measured.figures,
            "missing": measured.missing,
            "asked": asked,
            "versions": {
                "fewstep": fewstep.__version__,
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "python": platform.python_version(),
            },
            "device": device_name(self.device),
        }
        self.results.put(row)
        return row


def device_name(device: str) -> str:
    """Return what figures of speed were taken on."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _evaluations(model: Model | Guided, w: float, steps: int, sampler: str) -> int:
    """Return the network evaluations per image."""
    asking = cheapest(model, torch.tensor([w]))
    if sampler in SOLVERS:
        return steps * asking.passes
    return get_sampler(sampler).evaluations(asking, traits_of(model).clock(steps))


def _batches(data: Dataset) -> Iterator[Tensor]:
    for part in evenly(min(len(data), REFERENCE), len(data)).split(500):
        yield data.batch(part)[0]


def _everything(data: Dataset) -> Split:
    index = evenly(min(len(data), REFERENCE), len(data))
    parts = [data.batch(part) for part in index.split(1000)]
    labels = [y for _, y in parts if isinstance(y, Tensor)]
    return torch.cat([x for x, _ in parts]), torch.cat(labels)


def _row(found: Row) -> Row:
    """Return a row of the database as reports have it, its figures always in one order."""
    figures = found["figures"]
    fd = distance_key(figures)
    kd = next((k for k in figures if k == "kid" or k.startswith("kd_")), None)
    names = [k for k in (fd, kd, *FIGURES) if k is not None]
    names += sorted(set(figures) - set(names))
    return {
        **{k: found[k] for k in ("model", "sampler", "steps", "evaluations", "w")},
        **{k: figures.get(k) for k in names},
        "seconds_per_image": found["seconds_per_image"],
    }


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file; none where there is no such file, or it is damaged."""
    try:
        return load_file(path) if path.is_file() else {}
    except (SafetensorError, OSError):
        return {}
