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
from typing import Any

import torch
from torch import Tensor

import fewstep
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser, Guided
from fewstep.core.seed import derive
from fewstep.data import Ahead, Dataset, Prompts, Shards, augment, open_dataset, walk
from fewstep.data.latents import Latents
from fewstep.distill.plan import STAGE_ONE, TEACHER, Plan, Stage
from fewstep.distill.pretrain import Pretrain
from fewstep.distill.problem import Problem
from fewstep.errors import DataError, FolderError, RecipeError
from fewstep.models import (
    Card,
    LatentClass,
    UNetModel,
    build_unet,
    card_in,
    is_pipeline,
    load,
    load_model,
    network_of,
    read_card,
    save_model,
    student_of,
)
from fewstep.models.card import CARD
from fewstep.models.native import CLOCK
from fewstep.models.unet_class import FAMILY
from fewstep.recipes.config import Recipe, differences, load_recipe, save_recipe
from fewstep.recipes.evaluate import quiet
from fewstep.recipes.latents import encoded
from fewstep.recipes.memory import Memory
from fewstep.train import (
    Batch,
    TrainConfig,
    in_units,
    processes,
    train,
    translate_peer_failures,
)

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
            free = ["about", "evaluate", "data.name", "latents.folder", "latents.root"]
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
        with translate_peer_failures():
            processes(self.device).wait_for_everyone()

    def tell(self, line: str) -> None:
        """Say a line, once for all processes."""
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
                "--teacher, or for a teacher that is trained here --set latents.folder=FOLDER with "
                "a folder that has an autoencoder."
            )
        return Path(config.folder)

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

    @cached_property
    def _watched(self) -> list[Memory]:
        """The memory of the stages that this process has trained, in their order."""
        return []

    def train_teacher(self) -> Card:
        """Train the guided teacher, or return it where it is finished."""
        if self.is_done(TEACHER):
            return self._finished(TEACHER, None)
        if isinstance(self.images, Prompts):
            raise DataError(
                f"{self.recipe.data.name} has prompts alone; a teacher is trained on images. Give "
                "a finished one, with --teacher."
            )
        model = self._fresh_teacher(self.images)
        problem = Pretrain(
            model.null_cond, dropout=self.recipe.teacher.dropout, phi=model.traits.phi_range
        )
        return self._train(model, problem, self.recipe.train_config(None))

    def _fresh_teacher(self, images: Dataset) -> UNetModel:
        """Return the network to train: that of a stock pipeline folder, or a new one."""
        recipe = self.recipe
        if recipe.latents is not None and is_pipeline(self.encoders):
            card = card_in(self.encoders)
            if card.stage != "teacher":
                raise FolderError(f"{self.encoders} is a student; a teacher does not start there.")
            if recipe.latents.cond == _takes(card):
                model = self._load_parent(self.encoders)
                model.card = model.card.model_copy(update={"name": TEACHER, "figures": {}})
                return model
        with torch.random.fork_rng(devices=[]):
            # diffusers initialises from the global generator; the fork leaves the caller's alone.
            torch.default_generator.manual_seed(derive(recipe.seed, "init"))
            unet = build_unet(recipe.network, self.data.shape, images.num_classes)
        card = Card(
            fewstep=fewstep.__version__,
            family=FAMILY if recipe.latents is None else LatentClass.family,
            name=TEACHER,
            stage="teacher",
            clock=CLOCK,
            shape=self.data.shape,
            num_classes=images.num_classes,
            class_names=images.class_names,
            null_class=images.num_classes,
        )
        return (
            UNetModel(unet, card)
            if recipe.latents is None
            else LatentClass(unet, card, self.encoders)
        )

    def _load_parent(self, folder: Path) -> UNetModel:
        latents = self.recipe.latents
        prompt = None if latents is None else latents.negative_prompt
        return load_model(folder, negative_prompt=prompt)

    def _check_kind(self, card: Card, folder: Path) -> None:
        """Raise RecipeError unless the recipe's data are what the model works on."""
        latents, takes = self.recipe.latents, _takes(card)
        if latents is None and card.family != FAMILY:
            raise RecipeError(
                f"{folder} works on latents and {self.recipe.name} has images; write `latents:` "
                f"into the recipe, say with --set latents.cond={takes}."
            )
        if latents is not None and card.family == FAMILY:
            raise RecipeError(
                f"{folder} works on images and {self.recipe.name} has latents; leave `latents:` "
                "out."
            )
        if latents is not None and latents.cond != takes:
            raise RecipeError(
                f"latents.cond={latents.cond}, and {folder} draws by "
                f"{'classes' if takes == 'class' else 'prompts'}; set latents.cond={takes}."
            )

    def use_teacher(self, folder: Path) -> Card:
        """Copy a finished teacher, or the model of stage one, from another folder into this run.

        A folder of a stock diffusers pipeline is a teacher. Raises FolderError as `load_model`
        does, and for a student; RecipeError where the recipe's data do not fit it.
        """
        card = card_in(folder)
        self._check_kind(card, folder)
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
            model = self._load_parent(folder)
            model.card = model.card.model_copy(update={"name": name})
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
        loaded = self.load(stage.parent)
        parent = network_of(loaded)
        if stage.pair != parent.card.pair and parent.card.stage != "teacher":
            raise RecipeError(
                f"{stage.name} (pair: {stage.pair}) cannot start from {stage.parent} (pair: "
                f"{parent.card.pair}); a pair starts from the teacher or a pair."
            )
        recipe = self.recipe
        if isinstance(self.images, Prompts) and stage.states == "noised":
            raise RecipeError(
                f"{recipe.data.name} has prompts alone, and {stage.name} is to learn from noised "
                "images; set distill.states=trajectory, and it learns at its teacher's own states."
            )
        student = student_of(
            parent,
            stage,
            recipe.distill.w,
            w_dim=recipe.network.w_dim,
            w_band=recipe.network.w_band,
            lora=recipe.distill.lora,
            seed=recipe.seed,
        )
        teacher: Denoiser = parent if stage.pair else loaded
        problem = stage.problem(teacher, recipe.distill.w, parent.null_cond)
        return self._train(student, problem, recipe.train_config(stage))

    def _train(self, model: UNetModel, problem: Problem, config: TrainConfig) -> Card:
        name = model.card.name
        self.tell(f"{name}: {config.updates} updates of {config.batch_size}")
        started = time.perf_counter()
        seed = derive(self.recipe.seed, name)
        batch = self._batches(config.batch_size, seed, model.card.shape)
        bare = self._watched[0].watch.bare if self._watched else None
        memory = Memory.foreseen(model, problem, config, batch, self.device, bare)
        self._watched.append(memory)
        self.tell(f"{name}: memory {memory}")
        result = train(
            model,
            problem,
            batch,
            config,
            self.out / "training" / name,
            seed=seed,
            fingerprint=self._fingerprint(model.card, config),
            device=self.device,
            progress=self.progress,
            label=name,
        )
        peak = memory.measured()
        model.load_state_dict(result.ema_state)
        training = {
            "recipe": self.recipe.name,
            "data": Path(self.recipe.data.name).name,
            "data_sha256": self.images.content_hash(),
            "images": self.recipe.data.model_dump(mode="json", exclude={"name"}),
            "seed": self.recipe.seed,
            "updates": config.updates,
            "batch_size": config.batch_size,
            "lr": config.lr,
            "fingerprint": self._fingerprint(model.card, config),
            **peak,
        }
        model.card = model.card.model_copy(update={"training": training})
        card = self._save(model)
        self.tell(
            f"{name}: done in {time.perf_counter() - started:.0f} s, memory at most "
            f"{in_units(peak['memory_peak_bytes'])}"
        )
        return card

    def _save(self, model: UNetModel) -> Card:
        if self.is_main:
            save_model(model.cpu(), self.folder(model.card.name))
        self.wait()
        return read_card(self.folder(model.card.name))

    def _batches(self, batch_size: int, seed: int, shape: tuple[int, ...]) -> Batch:
        data, config = self.data, self.recipe.data
        alone = isinstance(self.images, Prompts)

        def batch(update: int, part: int, parts: int) -> tuple[Tensor, Cond]:
            size = batch_size // parts
            index, epoch = walk(data, seed, update, size, part=part, parts=parts)
            x, cond = data.batch(index)
            if isinstance(data, Latents):
                # Beside prompts alone there is nothing: only its shape will be looked at.
                return x.new_zeros(len(x), *shape) if alone else x, cond
            return augment(x, seed, epoch, index, flip=config.flip, crop=config.crop), cond

        return Ahead(batch) if isinstance(data, Shards) else batch

    def _fingerprint(self, card: Card, config: TrainConfig) -> str:
        """Of all that one model depends on: its own stage, and not the others of the plan."""
        stage = next((s.identity() for s in self.plan if s.name == card.name), None)
        told: dict[str, Any] = {
            "config": config.identity(),
            "network": self.recipe.network.model_dump(mode="json"),
            "stage": stage and {**stage, "w": self.recipe.distill.w},
            "seed": self.recipe.seed,
            "data": self.data.content_hash(),
            "augment": [self.recipe.data.flip, self.recipe.data.crop],
            "parent": [p.sha256 for p in card.parents[:1]],
        }
        if self.recipe.distill.lora is not None:
            told["lora"] = self.recipe.distill.lora.model_dump(mode="json")
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


def _takes(card: Card) -> str:
    """Return what a model is told, as `latents.cond` has it."""
    return "class" if card.num_classes else "prompt"


def default_device() -> str:
    """Return this process's GPU where there is one, else "cpu"."""
    return str(processes().device)
