"""Measure the way to noise and back: distilled pairs beside the guided teacher's DDIM inversion.

For each way, number of steps and w, on real images:
    there and back under the same class at the same w: PSNR, and the noise's figures;
    encoded at w = 0 and decoded under another class at w: whether it is that class now, and how
    near it stays to the image, beside a fresh sample of that class.

Figures are kept in the database of results, as `measure.evaluate` keeps those of cells.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fewstep.core.denoiser import Guided, cheapest
from fewstep.core.sample import sample
from fewstep.edit import check_together, decode, encode
from fewstep.errors import DataError, FolderError
from fewstep.folders import load
from fewstep.measure.cell import Row
from fewstep.measure.database import Inputs, key_of
from fewstep.measure.evaluate import Evaluation
from fewstep.measure.identity import identity_of
from fewstep.metrics import accuracy, extract, noise_figures, paired_rms, psnr
from fewstep.models import Model, card_of

Loaded: TypeAlias = "Model | Guided"
SHOWN = 10


@dataclass(frozen=True)
class Way:
    """An encoder and a decoder that are used together, at `steps` each."""

    name: str
    encoder: Loaded
    decoder: Loaded
    steps: int

    @property
    def identity(self) -> Inputs:
        """What the results depend on, as `identity_of` has it for each of the two."""
        encoder, decoder = identity_of(self.encoder), identity_of(self.decoder)
        return {"weights": f"{encoder['weights']}+{decoder['weights']}",
                "encoder": encoder, "decoder": decoder}  # fmt: skip

    def evaluations(self, w: float, w_from: float) -> int:
        """Return the network evaluations per image, there and back."""
        there, back = (
            cheapest(d, torch.tensor([v])) for d, v in ((self.encoder, w_from), (self.decoder, w))
        )
        return self.steps * (there.passes + back.passes)


def ways(models: Sequence[Loaded], teacher: Loaded) -> list[Way]:
    """Return the pairs of encoders and decoders of equal steps, and the teacher at N and 4 N.

    Raises FolderError where a model has no partner, or the two do not belong together.
    """
    by: dict[str, dict[int, Loaded]] = {"encode": {}, "decode": {}}
    for model in models:
        card = card_of(model)
        if card.steps is None or card.stage.stride != 1:
            raise FolderError(
                f"a round trip needs encoders and students of a number of deterministic steps, and "
                f"{card.name} is neither. Give encoders and students of equal steps."
            )
        by[card.direction][card.steps] = model
    alone = sorted(set(by["encode"]) ^ set(by["decode"]))
    if alone or not by["encode"]:
        what = f"there is no partner for {alone[0]} steps" if alone else "there is no encoder"
        raise FolderError(
            f"a round trip needs an encoder and a student for each number of steps, and {what}. "
            "Give both."
        )
    out = []
    counts = sorted(by["encode"], reverse=True)
    for steps in counts:
        pair = by["encode"][steps], by["decode"][steps]
        check_together(*pair)
        out.append(Way("distilled", *pair, steps))
    inverted = sorted({n for steps in counts for n in (steps, 4 * steps)}, reverse=True)
    return out + [Way("teacher", teacher, teacher, n) for n in inverted]


@dataclass(frozen=True)
class TripCell:
    """One way at one w: what its round trips and its transfers to another class measure.

    Attributes:
        model, steps, w: the way, its steps in each direction, and the guidance weight.
        evaluations: of the networks, per image, there and back.
        psnr: of images that went there and back, in dB.
        noise_mean, noise_variance, noise_ks, noise_ks_sliced: of the encoded noise; see
            `fewstep.metrics.noise_figures`.
        target_accuracy: share of the transferred images that the classifier takes for the class.
        rms_to_source: root mean square distance of these to the images that they were made from.
        rms_of_unrelated: that distance of fresh samples of the class.
    """

    model: str
    steps: int
    evaluations: int
    w: float
    psnr: float
    noise_mean: float
    noise_variance: float
    noise_ks: float
    noise_ks_sliced: float
    target_accuracy: float
    rms_to_source: float
    rms_of_unrelated: float

    @property
    def row(self) -> Row:
        """The cell as tables have it."""
        return dict(vars(self))


class Shown(NamedTuple):
    """The first images of a way at one w: there and back, and as another class."""

    label: str
    back: Tensor
    moved: Tensor


@dataclass(frozen=True)
class RoundTrip:
    """What all ways share. count: of held-out images; as many as there are, at most."""

    evaluation: Evaluation
    count: int

    def __post_init__(self) -> None:
        """Raise DataError unless the images have classes that the features' classifier knows."""
        known = self.evaluation.features.num_classes
        if known is None or known < 2 or self.evaluation.labels is None:
            raise DataError(
                "a transfer is judged by a classifier of the images' classes, two or more, and "
                f"the features {self.evaluation.features.name!r} know "
                f"{'none' if known is None else known}. Use features of `fewstep features train` "
                "for images with classes."
            )

    @property
    def images(self) -> tuple[Tensor, Tensor]:
        """Held-out images and their classes."""
        x, cond = self.evaluation.held_out
        return x[: self.count], cond[: self.count]

    @property
    def targets(self) -> Tensor:
        """The class that each image shall be transferred to: never its own."""
        _, cond = self.images
        k = int(self.evaluation.features.num_classes or 0)
        return (cond + 1 + torch.arange(len(cond)) % (k - 1)) % k

    def cell(self, way: Way, w: float) -> TripCell:
        """Return the figures of a way at w, measured now or kept from an earlier time."""
        inputs = self.evaluation.inputs(way.name, way.identity, "roundtrip", way.steps, w)
        inputs["samples"] = len(self.images[0])
        found = self.evaluation.results.get(key_of(inputs))
        if found is None:
            begun = time.perf_counter()
            figures = self._figures(way, w)
            # There and back twice, and a fresh sample: two and a half round trips.
            seconds = (time.perf_counter() - begun) / len(self.images[0]) / 2.5
            spent = way.evaluations(w, w)
            found = self.evaluation.keep(inputs, spent, figures, {}, seconds)
            self.evaluation.say(
                f"{way.name} {way.steps} steps, w = {w:g}: {figures['psnr']:.2f} dB"
            )
        plain: Any = vars(found) | dict(found.figures)
        return TripCell(**{f.name: plain[f.name] for f in fields(TripCell)})

    def _figures(self, way: Way, w: float) -> dict[str, float]:
        x, _ = self.images
        z, back, moved = self._there_and_back(way, w, len(x))
        fresh = sample(
            way.decoder,
            self.targets,
            w=w,
            steps=way.steps,
            seed=self.evaluation.seed,
            batch_size=self.evaluation.batch_size,
        ).cpu()
        logits = extract(self.evaluation.features, moved).logits
        assert logits is not None
        return {
            "psnr": psnr(back, x),
            **noise_figures(z),
            "target_accuracy": accuracy(logits, self.targets),
            "rms_to_source": paired_rms(moved, x),
            "rms_of_unrelated": paired_rms(fresh, x),
        }

    def _there_and_back(self, way: Way, w: float, count: int) -> tuple[Tensor, Tensor, Tensor]:
        x, cond = (t[:count] for t in self.images)
        few: Any = {"steps": way.steps, "batch_size": self.evaluation.batch_size}
        z = encode(way.encoder, x, cond, w=w, **few)
        back = decode(way.decoder, z, cond, w=w, **few)
        plain = z if w == 0 else encode(way.encoder, x, cond, w=0.0, **few)
        moved = decode(way.decoder, plain, self.targets[:count], w=w, **few)
        return z.cpu(), back.cpu(), moved.cpu()

    def shown(self, way: Way, w: float) -> Shown:
        """Return the first images of a way, for a sheet."""
        _, back, moved = self._there_and_back(way, w, min(SHOWN, len(self.images[0])))
        return Shown(f"{way.name}, {way.steps} steps", back, moved)


def open_ways(folders: Sequence[Any], teacher: Any, device: str) -> list[Way]:
    """Return the ways of model folders. Raises FolderError as `load` and `ways` do."""
    guide = load(teacher, device)
    card = card_of(guide)
    if card.stage.counts or card.sampler is not None:
        raise FolderError(
            f"--teacher must be a model that accepts any sampler and number of steps, and "
            f"{teacher} is a student. Give a teacher."
        )
    return ways([load(folder, device) for folder in folders], guide)
