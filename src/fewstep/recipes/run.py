"""The trainer of a run: makes its teacher and its students, each once.

The same command resumes where it stopped; what is finished is not made again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import cast

from torch import nn

from fewstep.atomic import translate_os_errors
from fewstep.core.denoiser import Denoiser, Guided
from fewstep.core.seed import derive
from fewstep.data import Buckets, Dataset, Prompts
from fewstep.data.latents import Latents
from fewstep.distill.matching import DistributionMatching, StudentAndScore
from fewstep.distill.plan import STAGE_ONE, TEACHER, Plan, Stage
from fewstep.distill.problem import Problem
from fewstep.errors import FolderError, in_units
from fewstep.folders import card_in, load, save_model
from fewstep.lock import writer_of
from fewstep.measure.evaluate import quiet
from fewstep.models import Card, Model, card_of, model_of, student_of
from fewstep.models.card import named
from fewstep.recipes.begun import check_folder
from fewstep.recipes.config import RECIPE, Recipe, load_recipe, save_recipe
from fewstep.recipes.memory import Memory
from fewstep.recipes.preflight import no_parent
from fewstep.recipes.run_checks import check_images, check_parent, check_run, check_training
from fewstep.recipes.samples import track_of
from fewstep.recipes.teachers import (
    check_kind,
    check_same,
    fresh_teacher,
    hold_teacher,
    load_parent,
    name_of,
)
from fewstep.recipes.training_data import TrainingData
from fewstep.recipes.workspace import Workspace
from fewstep.train import (
    TrainConfig,
    extend_run,
    processes,
    train,
    translate_peer_failures,
)

Log = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """One recipe in one folder: trains its teacher and its students.

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
    say: Log = quiet
    progress: bool = True

    @cached_property
    def workspace(self) -> Workspace:
        """The folder: where models are, what is done, what is begun."""
        return Workspace(self.recipe, self.out)

    @cached_property
    def data(self) -> TrainingData:
        """What the models are trained on."""
        return TrainingData(self.workspace, self.device, self.tell, self.progress)

    @property
    def images(self) -> Dataset | Prompts:
        """The training images, or prompts alone."""
        return self.data.images

    @property
    def latents(self) -> Latents | Buckets:
        """The latents of the images. Raises RecipeError where the recipe has none."""
        return self.data.latents

    @property
    def plan(self) -> Plan:
        """The recipe's stages."""
        return self.workspace.plan

    def folder(self, name: str) -> Path:
        """Return the folder of a model. Raises RecipeError for what is no name."""
        return self.workspace.folder(name)

    def load(self, name: str) -> Model | Guided:
        """Return a finished model, ready to be sampled."""
        return load(self.folder(name), str(processes(self.device).device))

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

    def check(
        self,
        trains: Collection[str] | None = None,
        teachers: Sequence[Path] = (),
        *,
        plan: bool = False,
    ) -> None:
        """Check everything that can be checked before anything is written: see `check_run`."""
        check_run(self.data, trains, teachers, plan=plan)

    @contextmanager
    def writing(
        self, trains: Collection[str] | None = None, teachers: Sequence[Path] = ()
    ) -> Iterator[None]:
        """Check and prepare the folder, and let no other process write to it, for a `with` block.

        trains: names of the models that will be trained; by default all of the recipe.
        teachers: folders that are given for the run.

        Raises FolderError where another process is writing to it, and as `check` does.
        """
        with writer_of(self.out) if self.is_main else nullcontext():
            self.check(trains, teachers)
            self.prepare(trains)
            yield

    def prepare(self, trains: Collection[str] | None = None) -> None:
        """Write the recipe into the folder, after `check_folder`."""
        if self.is_main:
            check_folder(self.workspace, trains)
            path = self.out / RECIPE
            with translate_os_errors(self.out):
                self.out.mkdir(parents=True, exist_ok=True)
            if not self.workspace.is_begun or load_recipe(str(path)) != self.recipe:
                save_recipe(self.recipe, path)
        self.wait()

    @cached_property
    def _watched(self) -> list[Memory]:
        """The memory of the stages that this process has trained, in their order."""
        return []

    def train_teacher(self) -> Card:
        """Train the guided teacher, or return it where it is finished."""
        if self.workspace.is_made(TEACHER):
            return self._finished(TEACHER, None)
        check_training(self.data, [TEACHER])
        assert not isinstance(self.data.images, Prompts)
        model = fresh_teacher(self.data, self.data.images)
        stage = self.recipe.teacher.stage
        problem = stage.problem(model, self.recipe.distill.w, model.null_cond)
        return self._train(model, problem, self.recipe.train_config(None))

    def use_teacher(self, folder: Path) -> Card:
        """Copy a finished teacher, or the model of stage one, from another folder into this run.

        A folder of a stock diffusers pipeline is a teacher. Raises FolderError as `load_model`
        does, for a student, and where the run has another one already; RecipeError where the
        recipe's data do not fit it.
        """
        card = card_in(folder)
        check_kind(self.recipe, card, folder)
        name = name_of(card, folder)
        if name == STAGE_ONE and self.workspace.is_done(TEACHER):
            ours = self.workspace.card(TEACHER).weights_sha256
            if [p.sha256 for p in card.parents[:1]] != [ours]:
                raise FolderError(
                    f"{folder} must be made from {self.folder(TEACHER)}, and it was made from "
                    "another teacher. Give one that was made from it, or use --out OTHER."
                )
        if self.workspace.is_done(name):
            check_same(folder, self.folder(name), self.recipe)
        elif self.workspace.has_checkpoint(name):
            raise FolderError(
                f"{self.out} is training a {name} of its own, and --teacher gives another. Leave "
                "--teacher out, or use --out OTHER."
            )
        else:
            model = load_parent(self.recipe, folder)
            model.card = model.card.model_copy(update={"name": name})
            if self.is_main:
                self.workspace.note_given(name)
            self._save(model)
        return self.workspace.card(name)

    def distill(self, stage: Stage) -> Card:
        """Train one student of the plan, or return it where it is finished.

        It starts from its parent's weights, with a w input added where the parent has none.
        """
        if self.workspace.is_made(stage.name):
            return self._finished(stage.name, stage)
        for name in (stage.parent, stage.teacher):
            if not self.workspace.is_done(name):
                raise FolderError(no_parent(self.out, stage, name))
        recipe = self.recipe
        # All that is left is checked now, and not when its turn comes after hours of training.
        todo = [s.name for s in self.plan if not self.workspace.is_made(s.name)]
        check_training(self.data, todo)
        parent = teacher = load(self.folder(stage.parent))
        if stage.teacher != stage.parent:
            teacher = load(self.folder(stage.teacher))
        student, problem = _begin(recipe, stage, parent, teacher)
        hold_teacher(model_of(teacher), recipe, processes(self.device).device)
        return self._train(student, problem, recipe.train_config(stage))

    def _train(self, model: Model, problem: Problem, config: TrainConfig) -> Card:
        name = model.card.name
        trained = cast(nn.Module, getattr(problem, "networks", model))
        self.tell(f"{name}: {config.updates} updates of {config.batch_size}")
        started = time.perf_counter()
        seed = derive(self.recipe.seed, name)
        data_sha256 = self.data.dataset.content_hash()
        fingerprint = self.workspace.fingerprint(model.card, config, data_sha256)
        shorter = self.workspace.shorter_training(model.card, config, data_sha256)
        if shorter is not None:
            if self.is_main:
                changed = {"updates": config.updates, "fingerprint": fingerprint}
                extend_run(self.workspace.checkpoints(name), changed)
            self.tell(f"{name}: trained on, from {shorter} to {config.updates} updates")
        self.wait()
        batch = self.data.batches(config.batch_size, seed, model.card.shape)
        bare = self._watched[0].watch.bare if self._watched else None
        example = self.data.example(batch, config, model.card.shape)
        memory = Memory.foreseen(trained, problem, config, example, self.device, bare)
        memory.check(name, config)
        self._watched.append(memory)
        self.tell(f"{name}: memory {memory}")
        result = train(
            trained,
            problem,
            batch,
            config,
            self.workspace.training(name),
            seed=seed,
            fingerprint=fingerprint,
            device=self.device,
            progress=self.progress,
            label=name,
            track=track_of(self.recipe, model, batch, config),
        )
        peak = memory.measured()
        trained.load_state_dict(result.ema_state)
        buckets = self.recipe.data.buckets
        training = {
            "recipe": self.recipe.name,
            "data": Path(self.recipe.data.name).name,
            "data_sha256": self.data.images.content_hash(),
            "images": self.recipe.data.model_dump(mode="json", exclude={"name", "buckets"}),
            **({"buckets": [f"{h}x{w}" for h, w in buckets]} if buckets else {}),
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

    def _save(self, model: Model) -> Card:
        if self.is_main:
            save_model(model.cpu().float(), self.folder(model.card.name))  # see `hold_matrices`
        self.wait()
        return self.workspace.card(model.card.name)

    def _finished(self, name: str, stage: Stage | None) -> Card:
        if stage is not None:
            check_parent(self.workspace, name, stage)
        check_images(self.data, [name])
        self.tell(f"{name}: already made")
        return self.workspace.card(name)


def _begin(
    recipe: Recipe, stage: Stage, parent: Model | Guided, teacher: Model | Guided
) -> tuple[Model, Problem]:
    """Return the student of a stage before its first update, and the problem that it is to solve.

    teacher: what answers; the parent, but for the kinds of stages that name another model.
    """
    start = partial(
        student_of,
        w_range=recipe.distill.w,
        w_dim=recipe.network.w_dim,
        w_band=recipe.network.band,
        lora=recipe.distill.lora,
        seed=recipe.seed,
    )
    inner = model_of(parent)
    student = start(inner, stage)
    if stage.teacher != stage.parent:
        student.card = student.card.model_copy(update={"teacher": named(card_of(teacher))})
    answers: Denoiser = inner if stage.pair else teacher
    problem = stage.problem(answers, recipe.distill.w, inner.null_cond)
    if isinstance(problem, DistributionMatching):
        networks = StudentAndScore(student, start(model_of(teacher), stage))
        problem = replace(problem, networks=networks)
    return student, problem
