"""A study on disk: teacher, students, figures; every piece is made once and kept.

    out/recipe.yaml              the resolved recipe
    out/teacher, stage-one, ...  model folders
    out/training/<name>/         checkpoints, metrics.jsonl and TensorBoard of each
    out/evaluation/              one file a measured cell
    out/report.html, report.json

The same command goes on where it stopped; what is finished is not made again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

import fewstep
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser, Guided
from fewstep.core.seed import derive
from fewstep.data import Ahead, Dataset, Shards, augment, open_dataset, walk
from fewstep.distill.plan import STAGE_ONE, TEACHER, Plan, Stage
from fewstep.distill.pretrain import Pretrain
from fewstep.distill.problem import Problem
from fewstep.errors import FolderError, RecipeError
from fewstep.models import (
    Card,
    UNetModel,
    build_unet,
    lineage,
    load,
    load_model,
    read_card,
    save_model,
    with_w_input,
)
from fewstep.models.card import CARD
from fewstep.models.native import CLOCK
from fewstep.models.unet_class import FAMILY
from fewstep.recipes.config import Recipe, differences, load_recipe, save_recipe
from fewstep.recipes.evaluate import quiet
from fewstep.train import Batch, TrainConfig, lost_processes_are_said, processes, train

RECIPE = "recipe.yaml"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """One recipe in one folder.

    Attributes:
        recipe: what to do.
        out: where it lives.
        device: "cpu" or "cuda"; None lets accelerate choose.
        say: told a line at each piece.
        progress: show a bar while training.
    """

    recipe: Recipe
    out: Path
    device: str | None = None
    say: Say = quiet
    progress: bool = True

    def prepare(self) -> None:
        """Write the recipe into the folder, or check that the folder belongs to it.

        Raises RecipeError where the folder was begun with another recipe, naming the keys.
        """
        if self.is_main:
            self._prepare()
        self.wait()

    def _prepare(self) -> None:
        path = self.out / RECIPE
        if path.is_file():
            begun = load_recipe(str(path))
            changed = differences(begun, self.recipe)
            # Data may move; that it is the same is in every checkpoint's fingerprint.
            free = ["about", "evaluate", "data.name"]
            if set(begun.distill.plan()) <= set(self.plan):
                free.append("distill.stages")  # a plan may grow
            changed = [k for k in changed if not k.startswith(tuple(free))]
            if changed:
                raise RecipeError(
                    f"{self.out} was begun with other settings of {', '.join(changed[:3])}"
                    f"{' and more' if len(changed) > 3 else ''}. Give another --out, or remove it."
                )
        elif self.out.exists() and any(self.out.iterdir()):
            raise FolderError(
                f"{self.out} is not empty and has no {RECIPE}; it is not a fewstep run. Give "
                "another --out."
            )
        self.out.mkdir(parents=True, exist_ok=True)
        save_recipe(self.recipe, path)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return bool(processes(self.device).is_main_process)

    def wait(self) -> None:
        """Wait until every process has come here."""
        with lost_processes_are_said():
            processes(self.device).wait_for_everyone()

    def tell(self, line: str) -> None:
        """Say a line, once for all processes."""
        if self.is_main:
            self.say(line)

    @cached_property
    def data(self) -> Dataset:
        """The training images; one process decodes them, the others wait."""
        with lost_processes_are_said(), processes(self.device).main_process_first():
            return open_dataset(self.recipe.data, "train")

    @property
    def plan(self) -> Plan:
        """The recipe's stages."""
        return self.recipe.distill.plan()

    def folder(self, name: str) -> Path:
        """Return the folder of a model of this run."""
        return self.out / name

    def is_done(self, name: str) -> bool:
        """Whether the model of that name is finished."""
        return (self.folder(name) / CARD).is_file()

    def load(self, name: str) -> UNetModel | Guided:
        """Return a finished model, ready to be sampled."""
        return load(self.folder(name), str(processes(self.device).device))

    def train_teacher(self) -> Card:
        """Train the guided teacher, or return it where it is finished."""
        if self.is_done(TEACHER):
            return self._finished(TEACHER, None)
        recipe, data = self.recipe, self.data
        if data.skipped:
            self.tell(f"{recipe.data.name}: left out {data.skipped} images that cannot be used")
        with torch.random.fork_rng(devices=[]):
            # diffusers initialises from the global generator; the fork leaves the caller's alone.
            torch.default_generator.manual_seed(derive(recipe.seed, "init"))
            unet = build_unet(recipe.network, data.shape, data.num_classes)
        card = Card(
            fewstep=fewstep.__version__,
            family=FAMILY,
            name=TEACHER,
            stage="teacher",
            clock=CLOCK,
            shape=data.shape,
            num_classes=data.num_classes,
            class_names=data.class_names,
            null_class=data.num_classes,
        )
        model = UNetModel(unet, card)
        problem = Pretrain(model.null_cond, dropout=recipe.teacher.dropout)
        return self._train(model, problem, recipe.train_config(None))

    def use_teacher(self, folder: Path) -> Card:
        """Copy a finished teacher, or the model of stage one, from another folder into this run."""
        card = read_card(folder)
        if card.stage == "halve":
            raise FolderError(
                f"{folder} is a student of {card.steps} steps, not a teacher. Give a teacher or "
                "the model of stage one."
            )
        name = STAGE_ONE if card.stage == "match" else TEACHER
        if name == STAGE_ONE and self.is_done(TEACHER):
            theirs, ours = card.parents[0].sha256, read_card(self.folder(TEACHER)).weights_sha256
            if theirs != ours:
                raise FolderError(
                    f"{folder} was made from another teacher than {self.folder(TEACHER)}. Give "
                    "one that was made from it."
                )
        if not self.is_done(name):
            model = load_model(folder)
            model.card = card.model_copy(update={"name": name})
            self._save(model)
        return read_card(self.folder(name))

    def distill(self, stage: Stage) -> Card:
        """Make one student of the plan, or return it where it is finished.

        It starts from its parent's weights; under stage one, or where there is none, the
        teacher's with a w input added.
        """
        if self.is_done(stage.name):
            return self._finished(stage.name, stage)
        if not self.is_done(stage.parent):
            raise FolderError(
                f"{self.folder(stage.parent)} is not made yet; {stage.name} starts from it. Run "
                "`fewstep train` first, or give --teacher."
            )
        parent = load_model(self.folder(stage.parent))
        if stage.pair != parent.card.pair and parent.card.stage != "teacher":
            raise RecipeError(
                f"{stage.name} (pair: {stage.pair}) cannot start from {stage.parent} (pair: "
                f"{parent.card.pair}); a pair starts from the teacher or a pair."
            )
        teacher: Denoiser = self.load(stage.parent)
        if stage.pair and isinstance(teacher, Guided):
            teacher = teacher.denoiser
        card = parent.card.model_copy(
            update={
                "name": stage.name,
                "stage": "match" if stage.steps is None else "halve",
                "w_range": None if stage.pair else self.recipe.distill.w,
                "w_band": self.recipe.network.w_band,
                "pair": stage.pair,
                "steps": stage.steps,
                "substeps": None if stage.steps is None else stage.substeps,
                "stride": stage.stride,
                "direction": stage.direction,
                "sampler": stage.sampler,
                "parents": lineage(parent.card),
                "figures": {},
            }
        )
        student = parent.like(with_w_input(parent, self.recipe.network.w_dim), card)
        problem = stage.problem(teacher, self.recipe.distill.w, parent.null_cond)
        return self._train(student, problem, self.recipe.train_config(stage))

    def _train(self, model: UNetModel, problem: Problem, config: TrainConfig) -> Card:
        name = model.card.name
        self.tell(f"{name}: {config.updates} updates of {config.batch_size}")
        started = time.perf_counter()
        seed = derive(self.recipe.seed, name)
        result = train(
            model,
            problem,
            self._batches(config.batch_size, seed),
            config,
            self.out / "training" / name,
            seed=seed,
            fingerprint=self._fingerprint(model.card, config),
            device=self.device,
            progress=self.progress,
            label=name,
        )
        model.load_state_dict(result.ema_state)
        training = {
            "recipe": self.recipe.name,
            "data": Path(self.recipe.data.name).name,
            "data_sha256": self.data.content_hash(),
            "images": self.recipe.data.model_dump(exclude={"name"}),
            "seed": self.recipe.seed,
            "updates": config.updates,
            "batch_size": config.batch_size,
            "lr": config.lr,
            "fingerprint": self._fingerprint(model.card, config),
        }
        model.card = model.card.model_copy(update={"training": training})
        card = self._save(model)
        self.tell(f"{name}: done in {time.perf_counter() - started:.0f} s")
        return card

    def _save(self, model: UNetModel) -> Card:
        if self.is_main:
            save_model(model.cpu(), self.folder(model.card.name))
        self.wait()
        return read_card(self.folder(model.card.name))

    def _batches(self, batch_size: int, seed: int) -> Batch:
        data, config = self.data, self.recipe.data

        def batch(update: int, part: int, parts: int) -> tuple[Tensor, Cond]:
            size = batch_size // parts
            index, epoch = walk(data, seed, update, size, part=part, parts=parts)
            x, cond = data.batch(index)
            return augment(x, seed, epoch, index, flip=config.flip, crop=config.crop), cond

        return Ahead(batch) if isinstance(data, Shards) else batch

    def _fingerprint(self, card: Card, config: TrainConfig) -> str:
        """Of all that one model depends on: its own stage, and not the others of the plan."""
        stage = next((s.identity() for s in self.plan if s.name == card.name), None)
        told = {
            "config": config.identity(),
            "network": self.recipe.network.model_dump(mode="json"),
            "stage": stage and {**stage, "w": self.recipe.distill.w},
            "seed": self.recipe.seed,
            "data": self.data.content_hash(),
            "augment": [self.recipe.data.flip, self.recipe.data.crop],
            "parent": [p.sha256 for p in card.parents[:1]],
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def _finished(self, name: str, stage: Stage | None) -> Card:
        card = read_card(self.folder(name))
        if stage is not None:
            parent = read_card(self.folder(stage.parent))
            if card.parents and card.parents[0].sha256 != parent.weights_sha256:
                raise FolderError(
                    f"{self.folder(name)} was made from another {stage.parent}. Remove "
                    f"{self.folder(name)} to make it again, or give another --out."
                )
        self.tell(f"{name}: already made")
        return card


def default_device() -> str:
    """Return this process's GPU where there is one, else "cpu"."""
    return str(processes().device)
