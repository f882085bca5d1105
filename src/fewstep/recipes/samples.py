"""Samples of a student for the trackers, drawn while it is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser, Guided, traits_of
from fewstep.core.sample import sample
from fewstep.errors import GridError, NonFiniteError
from fewstep.folders import image_decoder
from fewstep.models import Model
from fewstep.recipes.config import Recipe, flatten
from fewstep.train import Batch, Track, TrainConfig, processes

IMAGES = 8  # per w
WEIGHTS = 3  # values of w at most
STEPS = 16  # the most for models that take any number


def track_of(recipe: Recipe, model: Model, batch: Batch, config: TrainConfig) -> Track | None:
    """Return what is tracked of a model's training; None where the recipe names no tracker.

    The samples are drawn by the first conditions of the first batch.
    """
    wanted = recipe.track
    if not wanted.trackers:
        return None
    settings = dict(flatten(json.loads(recipe.model_dump_json())))
    images = None
    if wanted.images_every is not None and model.card.direction != "encode":
        here = processes()
        _, cond = batch(
            0, here.process_index * config.accumulate, here.num_processes * config.accumulate
        )
        images = _samples(recipe, model, cond)
    return Track(
        wanted.trackers,
        f"{recipe.name}-{model.card.name}",
        {**settings, "model": model.card.name},
        images=images,
        images_every=wanted.images_every or 1,
    )


def _samples(recipe: Recipe, model: Model, cond: Cond) -> Callable[[], Mapping[str, Tensor]]:
    card, clock = model.card, traits_of(model).clock
    guided = card.pair or card.stage.kind == "pretraining"
    denoiser: Denoiser = Guided(model, model.null_cond) if guided else model
    counts = card.stage.counts or range(STEPS, 0, -1)
    steps = next(n for n in counts if _allows(clock, n))
    few = conds.take(cond, slice(0, IMAGES))

    def images() -> dict[str, Tensor]:
        device = next(model.parameters()).device
        here, decode = conds.send(few, device), image_decoder(model, str(device))
        found: dict[str, Tensor] = {}
        for w in recipe.evaluate.w[:WEIGHTS]:
            try:
                x = sample(denoiser, here, w=w, steps=steps, seed=recipe.seed)
                with torch.autocast(device.type, enabled=False):  # autoencoders may overflow in it
                    found[f"w = {w:g}"] = decode(x).float().cpu()
            except NonFiniteError:
                continue  # training itself reports what is not finite
        return found

    return images


def _allows(clock: Callable[[int], object], steps: int) -> bool:
    try:
        clock(steps)
    except GridError:
        return False
    return True
