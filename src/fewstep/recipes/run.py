"""A study on disk: teacher, students, figures; every piece is made once.

    out/recipe.yaml              the resolved recipe
    out/teacher, stage-one, ...  model folders
    out/training/<name>/         checkpoints, metrics.jsonl and TensorBoard of each
    out/evaluation/              one file per measured cell
    out/report.html, report.json

The same command resumes where it stopped; what is finished is not made again.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import fewstep
from fewstep.core.denoiser import Denoiser
from fewstep.core.seed import derive
from fewstep.data import Dataset, Prompts
from fewstep.distill.plan import STAGE_ONE, TEACHER, Stage
from fewstep.distill.problem import Problem
from fewstep.errors import FolderError, in_units
from fewstep.folders import card_in, is_pipeline, load_model, save_model
from fewstep.models import Card, Model, build_unet, model_of, read_card, student_of
from fewstep.models.clocks.native import CLOCK
from fewstep.models.families.latent_class import LATENT_CLASS
from fewstep.models.families.unet_class import UNET_CLASS
from fewstep.recipes.begun import TRAINING, has_checkpoint, is_run, note_given
from fewstep.recipes.memory import Memory
from fewstep.recipes.preflight import no_parent
from fewstep.recipes.run_checks import CheckedRun
from fewstep.recipes.run_folder import Say
from fewstep.recipes.teachers import check_kind, check_same, condition_of, name_of
from fewstep.train import (
    TrainConfig,
    begun_run,
    extend_run,
    processes,
    train,
)

__all__ = ["Run", "Say", "default_device", "is_run"]


@dataclass(frozen=True)
class Run(CheckedRun):
    """One recipe in one folder: trains its teacher and its students.

    Attributes:
        recipe: the settings.
        out: the folder.
        device: "cpu", "cuda" or "cuda:N"; None takes a GPU where there is one.
        say: called with a line of text at each piece.
        progress: show a bar while training, or lines in a log file.
    """

    @cached_property
    def _watched(self) -> list[Memory]:
        """The memory of the stages that this process has trained, in their order."""
        return []

    def train_teacher(self) -> Card:
        """Train the guided teacher, or return it where it is finished."""
        if self.is_made(TEACHER):
            return self._finished(TEACHER, None)
        self.check_training([TEACHER])
        assert not isinstance(self.images, Prompts)
        model = self._fresh_teacher(self.images)
        stage = self.recipe.teacher.stage
        problem = stage.problem(model, self.recipe.distill.w, model.null_cond)
        return self._train(model, problem, self.recipe.train_config(None))

    def _fresh_teacher(self, images: Dataset) -> Model:
        """Return the network to train: that of a stock pipeline folder, or a new one."""
        recipe = self.recipe
        if recipe.latents is not None and is_pipeline(self.encoders):
            card = card_in(self.encoders)
            if not card.is_teacher:
                raise FolderError(f"{self.encoders} is a student; a teacher does not start there.")
            if recipe.latents.cond == condition_of(card):
                model = self._load_parent(self.encoders)
                model.card = model.card.model_copy(update={"name": TEACHER, "figures": {}})
                return model
        with torch.random.fork_rng(devices=[]):
            # diffusers initialises from the global generator; the fork leaves the caller's alone.
            torch.default_generator.manual_seed(derive(recipe.seed, "init"))
            unet = build_unet(recipe.network, self.data.shape, images.num_classes)
        card = Card(
            fewstep=fewstep.__version__,
            family=(UNET_CLASS if recipe.latents is None else LATENT_CLASS).name,
            name=TEACHER,
            stage=recipe.teacher.stage,
            clock=CLOCK,
            shape=self.data.shape,
            num_classes=images.num_classes,
            class_names=images.class_names,
            null_class=images.num_classes,
        )
        return Model(unet, card, source=None if recipe.latents is None else self.encoders)

    def _load_parent(self, folder: Path) -> Model:
        latents = self.recipe.latents
        prompt = None if latents is None else latents.negative_prompt
        return load_model(folder, negative_prompt=prompt)

    def use_teacher(self, folder: Path) -> Card:
        """Copy a finished teacher, or the model of stage one, from another folder into this run.

        A folder of a stock diffusers pipeline is a teacher. Raises FolderError as `load_model`
        does, for a student, and where the run has another one already; RecipeError where the
        recipe's data do not fit it.
        """
        card = card_in(folder)
        check_kind(self.recipe, card, folder)
        name = name_of(card, folder)
        if name == STAGE_ONE and self.is_done(TEACHER):
            ours = read_card(self.folder(TEACHER)).weights_sha256
            if [p.sha256 for p in card.parents[:1]] != [ours]:
                raise FolderError(
                    f"{folder} must be made from {self.folder(TEACHER)}, and it was made from "
                    "another teacher. Give one that was made from it, or use --out OTHER."
                )
        if self.is_done(name):
            check_same(folder, self.folder(name), self.recipe)
        elif has_checkpoint(self.out, name):
            raise FolderError(
                f"{self.out} is training a {name} of its own, and --teacher gives another. Leave "
                "--teacher out, or use --out OTHER."
            )
        else:
            model = self._load_parent(folder)
            model.card = model.card.model_copy(update={"name": name})
            if self.is_main:
                note_given(self.out, name)
            self._save(model)
        return read_card(self.folder(name))

    def distill(self, stage: Stage) -> Card:
        """Train one student of the plan, or return it where it is finished.

        It starts from its parent's weights, with a w input added where the parent has none.
        """
        if self.is_made(stage.name):
            return self._finished(stage.name, stage)
        if not self.is_done(stage.parent):
            raise FolderError(no_parent(self.out, stage))
        recipe = self.recipe
        # All that is left is checked now, and not when its turn comes after hours of training.
        self.check_training([s.name for s in self.plan if not self.is_made(s.name)])
        loaded = self.load(stage.parent)
        parent = model_of(loaded)
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

    def _train(self, model: Model, problem: Problem, config: TrainConfig) -> Card:
        name = model.card.name
        self.tell(f"{name}: {config.updates} updates of {config.batch_size}")
        started = time.perf_counter()
        seed = derive(self.recipe.seed, name)
        fingerprint = self._fingerprint(model.card, config)
        self._extend(model.card, config, fingerprint)
        batch = self.batches(config.batch_size, seed, model.card.shape)
        bare = self._watched[0].watch.bare if self._watched else None
        example = self.example(batch, config, model.card.shape)
        memory = Memory.foreseen(model, problem, config, example, self.device, bare)
        memory.check(name, config)
        self._watched.append(memory)
        self.tell(f"{name}: memory {memory}")
        result = train(
            model,
            problem,
            batch,
            config,
            self.out / TRAINING / name,
            seed=seed,
            fingerprint=fingerprint,
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
            "fingerprint": fingerprint,
            **peak,
        }
        model.card = model.card.model_copy(update={"training": training})
        card = self._save(model)
        most = peak.get("memory_peak_bytes")
        self.tell(
            f"{name}: done in {time.perf_counter() - started:.0f} s, memory at most "
            f"{'not known here' if most is None else in_units(most)}"
        )
        return card

    def _extend(self, card: Card, config: TrainConfig, fingerprint: str) -> None:
        """Let the checkpoints of a run of fewer updates, and nothing else changed, be continued."""
        checkpoints = self.out / TRAINING / card.name / "checkpoints"
        begun = begun_run(checkpoints)
        updates = None if begun is None else begun.get("updates")
        if begun is None or not isinstance(updates, int) or updates >= config.updates:
            return
        shorter = self._fingerprint(card, config.model_copy(update={"updates": updates}))
        if begun.get("fingerprint") == shorter:
            if self.is_main:
                extend_run(checkpoints, {"updates": config.updates, "fingerprint": fingerprint})
            self.tell(f"{card.name}: trained on, from {updates} to {config.updates} updates")
        self.wait()

    def _save(self, model: Model) -> Card:
        if self.is_main:
            save_model(model.cpu(), self.folder(model.card.name))
        self.wait()
        return read_card(self.folder(model.card.name))

    def _fingerprint(self, card: Card, config: TrainConfig) -> str:
        """Return a hash of everything that one model depends on; other stages do not count."""
        stage = next((s.identity() for s in self.plan if s.name == card.name), None)
        if stage is not None:
            stage["updates"] = config.updates
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
        if stage is not None and self.is_done(stage.parent):
            parent = read_card(self.folder(stage.parent))
            if card.parents and card.parents[0].sha256 != parent.weights_sha256:
                raise FolderError(
                    f"{self.folder(name)} must be made from {self.folder(stage.parent)}, and it "
                    f"was made from another {stage.parent}. Remove {self.folder(name)} to make it "
                    "again, or use --out OTHER."
                )
        self.check_images([name])
        self.tell(f"{name}: already made")
        return card


def default_device() -> str:
    """Return the device of this process: its GPU where there is one, else "cpu"."""
    return str(processes().device)
