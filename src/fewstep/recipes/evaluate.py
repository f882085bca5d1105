"""Measure models cell by cell: one cell is a model, a sampler, a number of steps and a w.

Every cell draws the same noise and the same classes, so that distances between cells are paired.
A cell is kept, with its images, in a file that says what it was measured on; what is kept is not
measured again, and a cell whose model, seed or features changed is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fewstep.atomic import atomic_write
from fewstep.core.denoiser import Guided, cheapest, traits_of
from fewstep.core.sample import sample
from fewstep.core.samplers import get_sampler
from fewstep.data import Dataset, open_dataset
from fewstep.errors import DataError
from fewstep.metrics import Features, Reference, digits_features, measure
from fewstep.models import UNetModel, card_of

Row = dict[str, Any]


def quiet(line: str) -> None:
    """Say nothing."""
    del line


FEATURES: dict[str, Callable[..., Features]] = {"digits": digits_features}


class Cell(NamedTuple):
    """A measured cell: the row of figures, and the images (samples, *D)."""

    row: Row
    images: Tensor


@dataclass(frozen=True)
class Evaluation:
    """What every cell of a table shares.

    Attributes:
        data: name of the data set that the models were trained on.
        folder: where features and cells are kept.
        samples: images a cell; classes go round in turn.
        seed: of the noise.
        batch_size: of sampling.
        say: told a line a cell.
    """

    data: str
    folder: Path
    samples: int = 2000
    seed: int = 0
    batch_size: int = 500
    say: Callable[[str], None] = quiet

    @cached_property
    def train(self) -> tuple[Tensor, Tensor]:
        """All training images and their classes."""
        return _everything(open_dataset(self.data, "train"))

    @cached_property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """All held-out images and their classes."""
        return _everything(open_dataset(self.data, "held-out"))

    @cached_property
    def features(self) -> Features:
        """The feature module of this data; trained when first needed and kept."""
        if self.data not in FEATURES:
            raise DataError(
                f"there are no features for the data {self.data!r}; there are for "
                f"{', '.join(FEATURES)}."
            )
        return FEATURES[self.data](self.folder, self.train, self.held_out)

    @cached_property
    def reference(self) -> Reference:
        """The training images, as the metrics see them."""
        return Reference.build(self.train[0], self.features)

    @cached_property
    def labels(self) -> Tensor:
        """The classes asked for, in turn: (samples,)."""
        return torch.arange(self.samples) % open_dataset(self.data, "train").num_classes

    def held_out_row(self) -> Row:
        """Return the held-out images' own figures: what real data scores."""
        x, labels = self.held_out
        figures = measure(x, labels, features=self.features, reference=self.reference)
        return _row("held-out", None, None, 0, None, figures, None)

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

        name: of the model in the table. teacher: the cell of the many-step teacher at the same
        w, which the paired distance refers to. Raises RangeError as `fewstep.sample` does.
        """
        traits = traits_of(model)
        steps = steps or (traits.steps or (0,))[0]
        sampler = sampler or traits.sampler or "deterministic"
        key = {
            "weights": card_of(model).weights_sha256,
            "sampler": sampler,
            "steps": steps,
            "w": w,
            "samples": self.samples,
            "seed": self.seed,
            "teacher": None if teacher is None else [teacher.row["steps"], _digest(teacher.images)],
            "features": self.features.name,
        }
        path = self.folder / f"{name}-{sampler}-{steps}-w{w:g}.safetensors"
        kept = _read(path, key)
        if kept is not None:
            return kept
        started = time.perf_counter()
        images = sample(
            model,
            self.labels,
            w=w,
            steps=steps,
            seed=self.seed,
            sampler=sampler,
            batch_size=self.batch_size,
        ).cpu()
        seconds = (time.perf_counter() - started) / self.samples
        figures = measure(
            images,
            self.labels,
            features=self.features,
            reference=self.reference,
            teacher_samples=None if teacher is None else teacher.images,
        )
        asked = cheapest(model, torch.tensor([w]))
        evaluations = get_sampler(sampler).evaluations(asked, traits.clock(steps))
        row = _row(name, sampler, steps, evaluations, w, figures, seconds)
        meta = {"key": json.dumps(key), "row": json.dumps(row)}
        atomic_write(path, save({"images": images.contiguous()}, metadata=meta))
        fd = row[f"fd_{self.features.name}"]
        self.say(f"{name} {sampler} {steps} steps, w = {w:g}: fd_{self.features.name} {fd:.3f}")
        return Cell(row, images)


def _everything(data: Dataset) -> tuple[Tensor, Tensor]:
    x, labels = data.batch(torch.arange(len(data)))
    assert isinstance(labels, Tensor)
    return x, labels


def _row(
    model: str,
    sampler: str | None,
    steps: int | None,
    evaluations: int,
    w: float | None,
    figures: dict[str, float],
    seconds: float | None,
) -> Row:
    return {
        "model": model,
        "sampler": sampler,
        "steps": steps,
        "evaluations": evaluations,
        "w": w,
        **figures,
        "rms_to_teacher": figures.get("rms_to_teacher"),
        "seconds_per_image": seconds,
    }


def _digest(images: Tensor) -> float:
    return float(images.double().square().sum())


def _read(path: Path, key: Row) -> Cell | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            if json.loads(meta.get("key", "null")) != key:
                return None
            return Cell(json.loads(meta["row"]), file.get_tensor("images"))
    except (SafetensorError, json.JSONDecodeError, KeyError):
        return None  # not one of ours, or damaged: it is measured again
