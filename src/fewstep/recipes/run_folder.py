"""The folder of a run, its processes, and the data that its models are trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.core.denoiser import Guided
from fewstep.data import DATASETS, Ahead, Dataset, Prompts, Shards, augment, examples, open_dataset
from fewstep.data.latents import Latents
from fewstep.distill.plan import STAGE_ONE, TEACHER, Plan
from fewstep.errors import RecipeError
from fewstep.folders import load
from fewstep.measure.evaluate import quiet
from fewstep.models import Model
from fewstep.recipes.begun import check_name, is_done
from fewstep.recipes.config import Recipe
from fewstep.recipes.latents import encoded
from fewstep.train import Batch, TrainConfig, processes, translate_peer_failures

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunFolder:
    """One recipe in one folder.

    Attributes:
        recipe: the settings.
        out: the folder.
        device: "cpu", "cuda" or "cuda:N"; None takes a GPU where there is one.
        say: called with a line of text at each piece.
        progress: show a bar while training, or lines in a log file.
    """

    recipe: Recipe
    out: Path
    device: str | None = None
    say: Say = quiet
    progress: bool = True

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return bool(processes(self.device).is_main_process)

    def wait(self) -> None:
        """Wait until every process has called this."""
        with translate_peer_failures():
            processes(self.device).wait_for_everyone()

    def tell(self, line: str) -> None:
        """Print a line, once for all processes."""
        if self.is_main:
            self.say(line)

    @cached_property
    def images(self) -> Dataset | Prompts:
        """The training images, or prompts alone; one process decodes them, the others wait."""
        config = self.recipe.data
        images: Dataset | Prompts
        if self.recipe.latents is not None and Path(config.name).suffix == Prompts.SUFFIX:
            images = Prompts(config.name)
        else:
            with translate_peer_failures(), processes(self.device).main_process_first():
                images = open_dataset(config, "train")
        self.tell(images.summary)
        return images

    @cached_property
    def data(self) -> Dataset:
        """What a model is trained on: the images, or their latents."""
        if self.recipe.latents is not None:
            return self.latents
        assert not isinstance(self.images, Prompts)
        return self.images

    @cached_property
    def latents(self) -> Latents:
        """The latents of the images, encoded by one process.

        Raises RecipeError where the recipe has none, or nothing says what encodes them.
        """
        encoders, config = self.encoders, self.recipe.latents
        assert config is not None
        device, say = processes(self.device).device, self.say if self.is_main else None
        with translate_peer_failures(), processes(self.device).main_process_first():
            return encoded(
                self.images,
                self.recipe.data,
                config,
                encoders,
                device=str(device),
                say=say,
                progress=self.progress,
            )

    @property
    def encoders(self) -> Path:
        """The folder of the parts that make latents and conditions."""
        for name in (TEACHER, STAGE_ONE):
            if self.is_done(name):
                return self.folder(name)
        config = self.recipe.latents
        if config is None or config.folder is None:
            raise RecipeError(
                f"{self.recipe.name} works on latents, and nothing says what encodes them: give "
                "--teacher, or for a teacher that is trained here --set latents.folder=FOLDER, a "
                "folder with an autoencoder in vae/."
            )
        return Path(config.folder)

    @property
    def plan(self) -> Plan:
        """The recipe's stages."""
        return self.recipe.distill.plan()

    def folder(self, name: str) -> Path:
        """Return the folder of a model of this run. Raises RecipeError for what is no name."""
        check_name(name)
        return self.out / name

    def is_done(self, name: str) -> bool:
        """Whether the model of that name is finished."""
        return is_done(self.out, name)

    def load(self, name: str) -> Model | Guided:
        """Return a finished model, ready to be sampled."""
        return load(self.folder(name), str(processes(self.device).device))

    @property
    def has_data(self) -> bool:
        """Whether the images are there to be opened."""
        return self.recipe.data.name in DATASETS or Path(self.recipe.data.name).exists()

    def batches(self, batch_size: int, seed: int, shape: tuple[int, ...]) -> Batch:
        """Return the batches of a training: (update, part, parts) -> (x, cond).

        shape: of one example of the model.
        """
        data, config = self.data, self.recipe.data
        alone = isinstance(self.images, Prompts)

        def batch(update: int, part: int, parts: int) -> tuple[Tensor, Cond]:
            size = batch_size // parts
            index, epoch = examples(data, seed, update, size, part=part, parts=parts)
            x, cond = data.batch(index)
            if isinstance(data, Latents):
                # Prompts alone have no latents: only the shape is used.
                return x.new_zeros(len(x), *shape) if alone else x, cond
            return augment(x, seed, epoch, index, flip=config.flip, crop=config.crop), cond

        return Ahead(batch) if isinstance(data, Shards) else batch

    def example(
        self, batch: Batch, config: TrainConfig, shape: tuple[int, ...]
    ) -> tuple[Tensor, Cond]:
        """Return at least one example, as a batch has it."""
        if isinstance(self.data, Shards):
            # A stream deals a process the parts that it begins with, and no others.
            here = processes(self.device)
            first, parts = here.process_index, here.num_processes * config.accumulate
            return batch(0, first * config.accumulate, parts)
        x, cond = self.data.batch(torch.zeros(1, dtype=torch.int64))
        return x.new_zeros(1, *shape) if isinstance(self.images, Prompts) else x, cond
