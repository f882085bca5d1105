"""The folder of a run: where its models are, what is done, and what is begun.

out/recipe.yaml              the resolved recipe
out/teacher, stage-one, ...  model folders
out/training/<name>/         checkpoints, metrics.jsonl and TensorBoard of each
out/evaluation/              the measured cells
out/report.html, report.json
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.atomic import atomic_write, json_sha256
from fewstep.distill.plan import STAGE_ONE, TEACHER, Plan
from fewstep.errors import RecipeError
from fewstep.models import Card, read_card
from fewstep.models.card import CARD
from fewstep.recipes.config import RECIPE, Recipe, is_resolved
from fewstep.recipes.depends import updates_of
from fewstep.recipes.reading import shown
from fewstep.train import TrainConfig, begun_run

TRAINING = "training"
# What else a run writes into its folder; no model may have one of these names.
RESERVED = {
    *(RECIPE, TRAINING, "evaluation", "seconds.json", "report.html", "report.json"),
    *("table.md", "table.csv", "plots", "sheets", "latents", "features"),
}
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def check_name(name: str) -> None:
    """Raise RecipeError unless a name can be that of a model, and so of its folder in the run."""
    if not NAME.fullmatch(name) or ".." in name or name.endswith("."):
        raise RecipeError(
            "the name of a stage must be a folder name of at most 64 lower-case letters, digits, "
            f"dashes, underscores and single dots, got {shown(name)}. Choose another name."
        )
    if name in RESERVED:
        raise RecipeError(
            f"the name of a stage must be free, and fewstep uses {name!r} itself. Choose another "
            "name, for example my-student."
        )


def is_run(out: Path) -> bool:
    """Whether a folder is a run: it holds a recipe that fewstep wrote."""
    path = out / RECIPE
    return path.is_file() and is_resolved(path)


@dataclass(frozen=True)
class Workspace:
    """The folder of a run, and the recipe that its models are made by."""

    recipe: Recipe
    out: Path

    @property
    def plan(self) -> Plan:
        """The recipe's stages."""
        return self.recipe.distill.plan()

    @property
    def names(self) -> list[str]:
        """The names of all models that the recipe makes, the teacher first."""
        return [TEACHER, *(stage.name for stage in self.plan)]

    @property
    def is_begun(self) -> bool:
        """Whether there is a recipe in the folder."""
        return (self.out / RECIPE).is_file()

    def folder(self, name: str) -> Path:
        """Return the folder of a model. Raises RecipeError for what is no name."""
        check_name(name)
        return self.out / name

    def training(self, name: str) -> Path:
        """Return the folder of the training of a model."""
        return self.out / TRAINING / name

    def checkpoints(self, name: str) -> Path:
        """Return the folder of the checkpoints of a model."""
        return self.training(name) / "checkpoints"

    def card(self, name: str) -> Card:
        """Return the card of a finished model."""
        return read_card(self.folder(name))

    def is_done(self, name: str) -> bool:
        """Whether the model of that name is finished."""
        return (self.out / name / CARD).is_file()

    def has_checkpoint(self, name: str) -> bool:
        """Whether the training of that model has a checkpoint to continue from."""
        return begun_run(self.checkpoints(name)) is not None

    def note_given(self, name: str) -> None:
        """Note that a model was brought in with --teacher, however alike its recipe is."""
        atomic_write(self.out / TRAINING / f"{name}.given", b"")

    def is_trained_here(self, name: str) -> bool:
        """Whether a model was, or is being, trained in this run, and not brought in."""
        if self.has_checkpoint(name):
            return True
        if not self.is_done(name) or (self.out / TRAINING / f"{name}.given").is_file():
            return False
        if name not in (TEACHER, STAGE_ONE) or self.training(name).is_dir():
            return True
        # The folder of the training may have been removed to free space.
        made, updates = self.card(name).training, updates_of(self.recipe, name)
        return made.get("recipe") == self.recipe.name and made.get("updates") == updates

    def is_made(self, name: str) -> bool:
        """Whether a model is finished, with all the updates that the recipe has now."""
        if not self.is_done(name):
            return False
        wanted, done = updates_of(self.recipe, name), self.card(name).training.get("updates")
        if isinstance(done, int) and wanted is not None and self.is_trained_here(name):
            return done >= wanted
        return True

    def fingerprint(self, card: Card, config: TrainConfig, data_sha256: str) -> str:
        """Return a hash of everything that one model depends on; other stages do not count.

        card: of the model before its training. data_sha256: of the images or latents.
        """
        recipe = self.recipe
        planned = next((s for s in self.plan if s.name == card.name), None)
        stage = None if planned is None else planned.identity()
        if stage is not None:
            stage["updates"] = config.updates
        # Left out at its default, so that runs from before there was a choice can go on.
        usual = {"w_features"} if recipe.network.w_features == "slow" else None
        inputs: dict[str, Any] = {
            "config": config.identity(),
            "network": recipe.network.model_dump(mode="json", exclude=usual),
            "stage": stage and {**stage, "w": recipe.distill.w},
            "seed": recipe.seed,
            "data": data_sha256,
            "augment": [recipe.data.flip, recipe.data.crop],
            "parent": [p.sha256 for p in card.parents[:1]],
        }
        if planned is not None and planned.teacher != planned.parent:
            inputs["teacher"] = self.card(planned.teacher).weights_sha256
        if recipe.distill.lora is not None:
            inputs["lora"] = recipe.distill.lora.model_dump(mode="json")
        if recipe.distill.teacher_dtype != "float32":
            inputs["teacher_dtype"] = recipe.distill.teacher_dtype
        return json_sha256(inputs)

    def shorter_training(self, card: Card, config: TrainConfig, data_sha256: str) -> int | None:
        """Return the updates of a begun training that is as this one, and shorter; else None.

        Arguments are those of `fingerprint`.
        """
        begun = begun_run(self.checkpoints(card.name)) or {}
        updates = begun.get("updates")
        if not isinstance(updates, int) or updates >= config.updates:
            return None
        shorter = config.model_copy(update={"updates": updates})
        ours = self.fingerprint(card, shorter, data_sha256)
        if "fingerprint" in begun:
            return updates if begun["fingerprint"] == ours else None
        # A packed run that was rounded has none, and its settings alone are compared.
        same = all(begun.get(k) == v for k, v in shorter.identity().items())
        return updates if same else None
