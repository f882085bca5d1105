"""Drawing the images of a cell, batch by batch, and looking at them through the features."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

from fewstep.core.denoiser import Guided
from fewstep.core.sample import joined, prepare
from fewstep.core.seed import Noise
from fewstep.folders import image_decoder
from fewstep.measure.conditions import Conditions
from fewstep.measure.images import ImageFile, ImageWriter
from fewstep.measure.solvers import SOLVERS, solve
from fewstep.metrics import FeatureOutput, Features, Measuring, check_finite_images, extract
from fewstep.models import Model


class Drawn(NamedTuple):
    """Images (B, C, H, W) of a batch on the CPU, their features, and the seconds of the drawing."""

    images: Tensor
    seen: FeatureOutput
    seconds: float


class How(NamedTuple):
    """How the images of a cell are drawn."""

    sampler: str
    steps: int
    w: float
    seed: int


def drawer(
    model: Model | Guided, how: How, conditions: Conditions, features: Features
) -> Callable[[range], Drawn]:
    """Return a function that draws the images of some numbers: image k is the same in any batch.

    It raises NonFiniteError where images are infinite or not a number.
    """
    images_of = image_drawer(model, conditions)

    def draw(part: range) -> Drawn:
        started = time.perf_counter()
        images = images_of(how, part)
        seconds = time.perf_counter() - started
        check_finite_images("samples", images)
        return Drawn(images, extract(features, images), seconds)

    return draw


def image_drawer(model: Model | Guided, conditions: Conditions) -> Callable[[How, range], Tensor]:
    """Return a function that draws the images (B, C, H, W) of some numbers, on the CPU.

    The autoencoder is loaded once. Images may be infinite or not a number.
    """
    decode: Callable[[Tensor], Tensor] | None = None

    def draw(how: How, part: range) -> Tensor:
        nonlocal decode
        states = _states(model, how, conditions, part)
        decode = decode or image_decoder(model, str(states.device))
        return decode(states).cpu()

    return draw


def _states(model: Model | Guided, how: How, conditions: Conditions, part: range) -> Tensor:
    cond = conditions.of(model, part)
    sampler, steps, w, seed = how
    if sampler in SOLVERS:
        return solve(model, cond, solver=sampler, w=w, steps=steps, seed=seed, number=part.start)
    prepared = prepare(model, cond, w=w, steps=steps, sampler=sampler, z=None)
    noise = Noise(seed, part)
    return joined([prepared.run(prepared.noise(noise), slice(None), noise)])


def look(
    turns: Iterable[list[tuple[range, Drawn]]],
    writer: ImageWriter,
    measuring: Measuring,
    teacher: ImageFile | None,
) -> float:
    """Write and measure the images of a cell as they come; return the seconds of their drawing.

    Processes draw at the same time: the slowest one of each turn counts. teacher: as many
    images that these are paired with.
    """
    seconds = 0.0
    for turn in turns:
        seconds += max(drawn.seconds for _, drawn in turn)
        for part, (images, seen, _) in turn:
            writer.add(images)
            pair = None
            if teacher is not None:
                pair = teacher.alike(images), teacher.part(part.start, part.stop)
            measuring.add(images, seen, pair)
    return seconds
