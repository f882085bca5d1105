"""What must hold before a run writes to its folder, and before it trains."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from fewstep.atomic import translate_os_errors
from fewstep.distill.plan import TEACHER
from fewstep.errors import DataError, FolderError
from fewstep.folders import card_in
from fewstep.lock import LOCK, writer_of
from fewstep.models import read_card
from fewstep.recipes.begun import check_changes, is_run, trained_here, updates_of
from fewstep.recipes.config import RECIPE, load_recipe, save_recipe
from fewstep.recipes.preflight import (
    check_data,
    check_fit,
    check_held,
    check_stages,
    check_targets,
    check_teacher,
    check_trainings,
    found_models,
)
from fewstep.recipes.run_folder import RunFolder
from fewstep.recipes.teachers import name_of


class CheckedRun(RunFolder):
    """A run's folder that is checked before it is written."""

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
        """Write the recipe into the folder, or check that the folder's models fit it.

        trains: the models that the command trains; by default all of the recipe. One that is
            finished may get more updates.

        Raises RecipeError where finished or begun models depend on settings that the recipe
        changes; FolderError where the folder is not a run.
        """
        if self.is_main:
            self.check_folder(trains)
            with translate_os_errors(self.out):
                self.out.mkdir(parents=True, exist_ok=True)
            if not self._is_begun or load_recipe(str(self.out / RECIPE)) != self.recipe:
                save_recipe(self.recipe, self.out / RECIPE)
        self.wait()

    @property
    def _is_begun(self) -> bool:
        return (self.out / RECIPE).is_file()

    def check_folder(self, trains: Collection[str] | None = None) -> None:
        """Check the folder as `prepare` does, and write nothing."""
        path = self.out / RECIPE
        with translate_os_errors(self.out):
            check_targets(self.recipe, self.out)
            try:
                there = sorted(os.listdir(self.out))
            except FileNotFoundError:  # a file among its parents is another error
                there = []
        if self._is_begun:
            if not is_run(self.out):
                raise FolderError(
                    f"{path} must be a recipe that fewstep wrote, and it is one of your own. Give "
                    "another --out, where nothing of yours can be replaced."
                )
            names = self._names if trains is None else trains
            check_changes(self.out, load_recipe(str(path)), self.recipe, names)
        elif set(there) - {LOCK}:
            raise FolderError(
                f"{self.out} is not empty and has no {RECIPE}; it is not a fewstep run. Give "
                "another --out."
            )

    def check(
        self,
        trains: Collection[str] | None = None,
        teachers: Sequence[Path] = (),
        *,
        plan: bool = False,
    ) -> None:
        """Check everything that can be checked before anything is written or trained.

        trains: names of the models that will be trained; by default all of the recipe.
        teachers: folders that are given for the run. plan: data and teachers may be missing.

        Raises a FewstepError for the first thing that does not fit: folders, settings, teachers,
        steps, batches, memory, data.
        """
        self.check_folder(trains)
        names = self._names if trains is None else trains
        found = found_models(self.recipe, self.out, teachers)
        given = {name_of(card_in(folder), folder) for folder in teachers}
        if given:
            given.add(TEACHER)  # a command that is given a model trains no teacher
        todo = [n for n in names if n not in given and not self.is_made(n)]
        if plan and not self.has_data:
            self.check_training(todo, teachers, parents=bool(found), data=False)
            self.tell(f"not checked: the data, since {self.recipe.data.name} is not there")
        else:
            self.check_training(todo, teachers, parents=bool(found) or not plan)

    def check_training(
        self,
        names: Collection[str],
        teachers: Sequence[Path] = (),
        *,
        parents: bool = True,
        data: bool = True,
    ) -> None:
        """Check that models can be trained one after the other.

        parents: also require that every parent is there, given, or made before. data: also open
        the images.
        """
        recipe, stages = self.recipe, [s for s in self.plan if s.name in names]
        check_trainings(recipe, names, self.device)
        found = found_models(recipe, self.out, teachers)
        there = {*found, TEACHER} if TEACHER in names else {*found}
        check_stages(recipe, self.out, stages, found, parents=there if parents else None)
        if not names:
            return
        if stages:
            check_held(recipe, found, self.device)
        if data:
            if TEACHER in names:
                check_teacher(recipe, self.images)
            check_data(recipe, stages, self.images)
            self.check_images([TEACHER, *(s.parent for s in stages)])
            check_fit(recipe, found, self.images)

    @property
    def _names(self) -> list[str]:
        return [TEACHER, *(s.name for s in self.plan)]

    def is_made(self, name: str) -> bool:
        """Whether a model is finished, with all the updates that the recipe has now."""
        if not self.is_done(name):
            return False
        wanted, done = updates_of(self.recipe, name), read_card(self.folder(name)).training
        short = isinstance(done.get("updates"), int) and wanted is not None
        if short and trained_here(self.out, self.recipe, name):
            return int(str(done["updates"])) >= int(wanted or 0)
        return True

    def check_images(self, names: Collection[str]) -> None:
        """Raise DataError where models of this run were trained on other images than these.

        Where the images cannot be opened, nothing is checked.
        """
        for name in dict.fromkeys(names):
            if not self.is_done(name) or not trained_here(self.out, self.recipe, name):
                continue
            then = read_card(self.folder(name)).training.get("data_sha256")
            if then is None or not self.has_data:
                continue
            now = self.images.content_hash()
            if then != now:
                raise DataError(
                    f"the images must be those that {self.folder(name)} was trained on, and "
                    f"{self.recipe.data.name} now holds other images, or is read in another way "
                    f"(hash {str(then)[:8]} -> {now[:8]}). Restore them, or use --teacher "
                    f"{self.folder(TEACHER)} --out OTHER to continue with the new ones."
                )
