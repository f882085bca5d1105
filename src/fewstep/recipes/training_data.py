"""What the models of a run are trained on: images or their latents, batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.data import (
    DATASETS,
    Ahead,
    Buckets,
    Dataset,
    Prompts,
    Shards,
    augment,
    examples,
    open_dataset,
)
from fewstep.data.latents import Latents
from fewstep.distill.plan import STAGE_ONE, TEACHER
from fewstep.errors import RecipeError
from fewstep.files.hub import local
from fewstep.recipes.latents import encoded
from fewstep.recipes.workspace import Workspace
from fewstep.train import Batch, TrainConfig, processes, translate_peer_failures


@dataclass(frozen=True)
class TrainingData:
    """The data of a run's recipe; opened, decoded and encoded when they are first needed.

    Attributes:
        workspace: recipe and folder of the run, whose own teacher encodes latents.
        device: of the process; None takes a GPU where there is one.
        say: called with a line of text, by every process.
        progress: show how far encoding is.
    """

    workspace: Workspace
    device: str | None
    say: Callable[[str], None]
    progress: bool = True

    @property
    def are_there(self) -> bool:
        """Whether the images are there to be opened."""
        name = self.workspace.recipe.data.name
        return name in DATASETS or Path(name).exists()

    @cached_property
    def images(self) -> Dataset | Prompts:
        """The training images, or prompts alone; one process decodes them, the others wait."""
        recipe = self.workspace.recipe
        images: Dataset | Prompts
        if recipe.latents is not None and Path(recipe.data.name).suffix == Prompts.SUFFIX:
            images = Prompts(recipe.data.name)
        else:
            with translate_peer_failures(), processes(self.device).main_process_first():
                images = open_dataset(recipe.data, "train")
        self.say(images.summary)
        return images

    @cached_property
    def dataset(self) -> Dataset:
        """What a model is trained on: the images, or their latents."""
        if self.workspace.recipe.latents is not None:
            return self.latents
        assert not isinstance(self.images, Prompts)
        return self.images

    @cached_property
    def latents(self) -> Latents | Buckets:
        """The latents of the images, encoded by one process; those of each size by themselves.

        Raises RecipeError where the recipe has none, or nothing says what encodes them.
        """
        encoders, recipe = self.encoders, self.workspace.recipe
        assert recipe.latents is not None
        how = recipe.latents

        def made(images: Dataset | Prompts) -> Latents:
            return encoded(
                images,
                recipe.data,
                how,
                encoders,
                device=str(processes(self.device).device),
                say=self.say,
                progress=self.progress,
            )

        images = self.images
        with translate_peer_failures(), processes(self.device).main_process_first():
            if not isinstance(images, Buckets):
                return made(images)
            parts = [made(part) for part in images.parts]
        shrunk = images.parts[0].shape[1] // parts[0].shape[1]
        return Buckets(parts, (parts[0].shape[0], *(n // shrunk for n in images.shape[1:])))

    @property
    def encoders(self) -> Path:
        """The folder of the parts that make latents and conditions."""
        for name in (TEACHER, STAGE_ONE):
            if self.workspace.is_done(name):
                return self.workspace.folder(name)
        config = self.workspace.recipe.latents
        if config is None or config.folder is None:
            raise RecipeError(
                f"{self.workspace.recipe.name} works on latents, and nothing says what encodes "
                "them: give --teacher, or for a teacher that is trained here --set "
                "latents.folder=FOLDER, a folder with an autoencoder in vae/."
            )
        return local(config.folder)

    def batches(self, batch_size: int, seed: int, shape: tuple[int, ...]) -> Batch:
        """Return the batches of a training: (update, part, parts) -> (x, cond).

        shape: of one example of the model.
        """
        data, config = self.dataset, self.workspace.recipe.data
        alone = isinstance(self.images, Prompts)

        def batch(update: int, part: int, parts: int) -> tuple[Tensor, Cond]:
            size = batch_size // parts
            index, epoch = examples(data, seed, update, size, part=part, parts=parts)
            x, cond = data.batch(index)
            if self.workspace.recipe.latents is not None:
                # Prompts alone have no latents: only the shape is used.
                return x.new_zeros(len(x), *shape) if alone else x, cond
            return augment(x, seed, epoch, index, flip=config.flip, crop=config.crop), cond

        slow = isinstance(data, Shards) or self.workspace.recipe.latents is not None
        return Ahead(batch) if slow else batch

    def example(
        self, batch: Batch, config: TrainConfig, shape: tuple[int, ...]
    ) -> tuple[Tensor, Cond]:
        """Return at least one example of the largest size, as a batch has it."""
        if isinstance(self.dataset, Shards):
            # A stream deals a process the parts that it begins with, and no others.
            here = processes(self.device)
            parts = here.num_processes * config.accumulate
            return batch(0, here.process_index * config.accumulate, parts)
        first = self.dataset.largest() if isinstance(self.dataset, Buckets) else 0
        x, cond = self.dataset.batch(torch.tensor([first]))
        return x.new_zeros(1, *shape) if isinstance(self.images, Prompts) else x, cond
