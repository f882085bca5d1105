"""Measure models cell by cell: one cell is a model, a sampler, a number of steps and a w.

Every cell draws the same noise and the same classes, so that distances between cells are paired.
Its figures are kept in a database and its images beside it, under the hash of everything they
depend on: what is kept is not measured again, and a cell of another model, seed, data or features
is another cell.

    folder/results.sqlite            one row a cell
    folder/cells/<key>.safetensors   its images
    folder/features/                 where the features were trained on the way
    folder/reference/<key>.safetensors  the training images as the features see them
"""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
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
from fewstep.core.cond import Cond, take
from fewstep.core.denoiser import Guided, cheapest, traits_of
from fewstep.core.sample import sample
from fewstep.core.samplers import get_sampler
from fewstep.data import DATASETS, DataConfig, Dataset, caption, open_dataset
from fewstep.metrics import (
    Features,
    Moments,
    Reference,
    digits_features,
    distance_key,
    measure,
    open_features,
    train_features,
    vision_features,
)
from fewstep.models import TextUNet, UNetModel, card_of, encode_prompts, network_of, to_images
from fewstep.models.solvers import SOLVERS, solve
from fewstep.recipes.results import Results, key_of

Row = dict[str, Any]
IMAGES = "images"
REFERENCE = 50_000
SEEN = {"mean", "cov", "count", "features"}
KEPT = 2_000  # images of a cell that nothing is paired with


def quiet(line: str) -> None:
    """Say nothing."""
    del line


@dataclass(frozen=True)
class Cell:
    """A measured cell. row: its figures, as reports have them; key, path: of its images."""

    row: Row
    key: str
    path: Path

    @property
    def images(self) -> Tensor:
        """The images (B, *D) in [-1, 1] on the disk: the first 2,000, or all of a reference."""
        return load_file(self.path)[IMAGES]


@dataclass(frozen=True)
class Evaluation:
    """What every cell of a table shares.

    Attributes:
        data: the images that the models were trained on.
        folder: where results, cells and features are kept.
        samples: images a cell; classes go round in turn.
        seed: of the noise.
        batch_size: of sampling.
        features_path: folder of a transformers vision model, or a weights file of the published
            Inception, to look through; None takes the digits' own features for them, and else a
            classifier trained here on the data, when first needed.
        device: of the features.
        say: told a line a cell.
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
    def train(self) -> tuple[Tensor, Tensor]:
        """The training images and their classes: all, or 50,000 evenly chosen."""
        return _everything(open_dataset(self.data, "train"))

    @cached_property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """All held-out images and their classes."""
        return _everything(open_dataset(self.data, "held-out"))

    @cached_property
    def features(self) -> Features:
        """The feature module; one of this data is trained when first needed and kept."""
        if self.features_path is not None:
            return open_features(self.features_path, self.device)
        if self.data.name in DATASETS:
            return digits_features(self.folder, self.train, self.held_out)
        folder = self.folder / "features"
        if folder.is_dir():
            return vision_features(folder, self.device)
        self.say("features: training a classifier on the data; --features takes one of your own")
        found = train_features(
            folder,
            open_dataset(self.data, "train"),
            open_dataset(self.data, "held-out"),
            name="own",
            flip=self.data.flip,
            device=self.device,
        )
        self.say(f"features: accuracy {found.held_out_accuracy:.3f} on the held-out images")
        return found

    @cached_property
    def reference(self) -> Reference:
        """The training images, as the metrics see them; extracted once and kept in the folder."""
        images, features = self.train[0], self.features
        key = key_of({"data": self._data_sha256, "features": features.sha256})
        path = self.folder / "reference" / f"{key[:32]}.safetensors"
        found = _tensors(path)
        if found.keys() >= SEEN:
            known = Moments(found["mean"], found["cov"], int(found["count"]))
            return Reference(features.name, known, images, found["features"])
        made = Reference.build(images, features)
        kept = {"mean": made.moments.mean, "cov": made.moments.cov, "features": made.features}
        kept["count"] = torch.tensor(made.moments.count)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, save({k: v.contiguous() for k, v in kept.items()}))
        return made

    @cached_property
    def labels(self) -> Tensor:
        """The classes asked for, in turn: (samples,); of very many, evenly chosen ones, twice."""
        known = open_dataset(self.data, "train").num_classes
        asked = min(known, self.samples // 2)
        chosen = torch.linspace(0, known - 1, asked, dtype=torch.float64).round().long()
        return chosen[torch.arange(self.samples) % asked]

    def cond(self, model: UNetModel | Guided) -> Cond:
        """Return what the model is told: the classes, or the first caption of each."""
        card = card_of(model)
        if card.num_classes:
            return self.labels
        names = open_dataset(self.data, "train").class_names
        asked, places = torch.unique(self.labels, return_inverse=True)
        texts = [caption(self.data.captions[0], names[k]) for k in asked.tolist()]
        inner = network_of(model)
        assert isinstance(inner, TextUNet)
        if inner.source not in self._told:
            self._told[inner.source] = encode_prompts(inner.source, texts, device=self.device)
        return take(self._told[inner.source], places)

    @cached_property
    def _told(self) -> dict[Path, Cond]:
        """The captions, as the encoders of a folder have them."""
        return {}

    @cached_property
    def results(self) -> Results:
        """The database of the rows."""
        return Results(self.folder / "results.sqlite")

    def held_out_row(self) -> Row:
        """Return the held-out images' own figures: what real data scores."""
        x, labels = self.held_out
        asked = self.asked("held-out", None, None, None, len(x)) | {"seed": None}
        found = self.results.get(key_of(asked))
        if found is None:
            figures = measure(x, labels, features=self.features, reference=self.reference)
            found = self.keep("held-out", asked, 0, figures, None)
        return _row(found)

    def cell(
        self,
        name: str,
        model: UNetModel | Guided,
        *,
        w: float,
        steps: int | None = None,
        sampler: str | None = None,
        teacher: Cell | None = None,
    ) -> Cell:
        """Return the cell, measured now or kept from before.

        name: of the model in the table. sampler: one of `fewstep.core.samplers.SAMPLERS` or of
        `fewstep.models.solvers.SOLVERS`. teacher: the cell of the many-step teacher at the same
        w, which the paired distance refers to. Raises RangeError as `fewstep.sample` does.
        """
        traits = traits_of(model)
        steps = steps or (traits.steps or (0,))[0]
        sampler = sampler or traits.sampler or "deterministic"
        asked = self.asked(card_of(model).weights_sha256, sampler, steps, w, self.samples)
        asked["teacher"] = None if teacher is None else teacher.key
        if not card_of(model).num_classes:
            asked["caption"] = self.data.captions[0]
        key = key_of(asked)
        path = self.folder / "cells" / f"{key[:32]}.safetensors"
        found = self.results.get(key)
        if found is not None and IMAGES in _tensors(path):
            return Cell(_row(found) | {"model": name}, key, path)
        started = time.perf_counter()
        images = self._draw(model, w, steps, sampler)
        seconds = (time.perf_counter() - started) / self.samples
        figures = measure(
            images,
            self.labels,
            features=self.features,
            reference=self.reference,
            teacher_samples=None if teacher is None else teacher.images,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = images if teacher is None else images[:KEPT]
        atomic_write(path, save({IMAGES: kept.contiguous()}))
        asking = cheapest(model, torch.tensor([w]))
        if sampler in SOLVERS:
            evaluations = steps * asking.passes
        else:
            evaluations = get_sampler(sampler).evaluations(asking, traits.clock(steps))
        row = _row(self.keep(name, asked, evaluations, figures, seconds))
        fd = distance_key(row)
        self.say(f"{name} {sampler} {steps} steps, w = {w:g}: {fd} {row[fd]:.3f}")
        return Cell(row, key, path)

    def _draw(self, model: UNetModel | Guided, w: float, steps: int, sampler: str) -> Tensor:
        shared: dict[str, Any] = {"w": w, "steps": steps, "seed": self.seed}
        shared["batch_size"] = self.batch_size
        cond = self.cond(model)
        if sampler in SOLVERS:
            states = solve(model, cond, solver=sampler, **shared)
        else:
            states = sample(model, cond, sampler=sampler, **shared)
        return to_images(model, states).cpu()

    def asked(
        self, weights: str, sampler: str | None, steps: int | None, w: float | None, samples: int
    ) -> Row:
        """Return everything that a cell's figures depend on; `key_of` it is the cell's key."""
        return {
            "weights": weights,
            "sampler": sampler,
            "steps": steps,
            "w": w,
            "samples": samples,
            "seed": self.seed,
            "data": self._data_sha256,
            "features": self.features.sha256,
        }

    @cached_property
    def _data_sha256(self) -> str:
        return open_dataset(self.data, "train").content_hash()

    def keep(
        self, name: str, asked: Row, evaluations: int, figures: Row, seconds: float | None
    ) -> Row:
        """Write a measured cell into the database; return its row."""
        now = datetime.datetime.now(datetime.timezone.utc)
        row = {
            "key": key_of(asked),
            "created": now.isoformat(timespec="seconds"),
            "model": name,
            "weights_sha256": asked["weights"],
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
            "figures": figures,
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
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _everything(data: Dataset) -> tuple[Tensor, Tensor]:
    count = min(len(data), REFERENCE)
    index = torch.linspace(0, len(data) - 1, count, dtype=torch.float64).round().long()
    parts = [data.batch(part) for part in index.split(1000)]
    labels = [y for _, y in parts if isinstance(y, Tensor)]
    return torch.cat([x for x, _ in parts]), torch.cat(labels)


def _row(found: Row) -> Row:
    figures = found["figures"]
    fd = distance_key(figures)
    return {
        **{k: found[k] for k in ("model", "sampler", "steps", "evaluations", "w")},
        fd: figures[fd],
        **{k: v for k, v in figures.items() if k not in (fd, "rms_to_teacher")},
        "rms_to_teacher": figures.get("rms_to_teacher"),
        "seconds_per_image": found["seconds_per_image"],
    }


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return what a file holds; nothing where there is none, or where it is damaged."""
    try:
        return load_file(path) if path.is_file() else {}
    except SafetensorError:
        return {}
