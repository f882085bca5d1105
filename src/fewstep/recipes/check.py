"""Everything that could stop a report, checked before the first update of its training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fewstep.core.device import choose_device
from fewstep.core.grid import Clock, cosine
from fewstep.data import DATASETS, Prompts
from fewstep.distill.plan import STAGE_ONE, TEACHER
from fewstep.errors import FolderError, GridError, RecipeError, ShapeError
from fewstep.files.hub import local
from fewstep.folders import card_in, is_pipeline
from fewstep.measure.evaluate import Evaluation
from fewstep.measure.own_features import kept_features
from fewstep.measure.room import check_samples
from fewstep.measure.solvers import SOLVERS
from fewstep.metrics.digits_features import FILE
from fewstep.models.clocks.flow import FlowClock
from fewstep.models.clocks.native import TIMESTEPS
from fewstep.models.scheduler import StockClock, read_clock
from fewstep.recipes.run import Run
from fewstep.recipes.schema import EvaluateConfig
from fewstep.train import main_first

MAX_STEPS = 100_000
COUNTS = ("reference_steps", "teacher_steps", "stage_one_steps", "consistency_steps")


@dataclass(frozen=True)
class Checked:
    """A report that can be made.

    Attributes:
        evaluation: what its cells share.
        settings: `evaluate` of the recipe, with defaults that fit the clock of the models.
        notes: what was chosen here, for the page.
    """

    evaluation: Evaluation
    settings: EvaluateConfig
    notes: tuple[str, ...]


def check_report(run: Run, teachers: Sequence[Path] = ()) -> Checked:
    """Return how a run will be measured, or raise what would stop its report; nothing is trained.

    Defaults of `evaluate` that do not fit the clock of the models are replaced by the nearest
    numbers that do, with a note; a number that the recipe gives must fit.

    teachers: folders that the run will start from.

    Raises:
        RecipeError: prompts without images, steps that the clock does not have, a w outside the
            range of a given stage one, features that do not take these images.
        FolderError: no guided teacher, features that cannot be read, a file in the run's
            `evaluation` folder that is damaged.
        RangeError: more samples than fit on the disk, or images that do not fit in memory.
    """
    images = run.data.images
    if isinstance(images, Prompts):
        raise RecipeError(
            f"a report needs training images, since its figures compare with images, and "
            f"{Path(run.recipe.data.name).name} holds prompts alone. Use `fewstep distill`, then "
            "`fewstep evaluate --reference IMAGES`."
        )
    _check_teachers(run, teachers)
    asked, folder = run.recipe.evaluate, run.out / "evaluation"
    check_samples(asked.samples, images.shape, "evaluate.samples", folder, asked.batch_size)
    settings, notes = fit_steps(asked, _timesteps_of_run(run, teachers))
    features = settings.features
    evaluation = Evaluation(
        run.recipe.data.model_copy(update={"buckets": ()}),  # figures are of one size
        folder,
        settings.samples,
        run.recipe.seed,
        settings.batch_size,
        None if features is None else Path(features),
        choose_device(run.device),
        run.tell,
    )
    with main_first():  # which decodes the images, where training has them in other sizes
        _ = evaluation.dataset, evaluation.held_out_dataset
    check_evaluation(evaluation, "evaluate.features")
    return Checked(evaluation, settings, tuple(notes))


def check_evaluation(evaluation: Evaluation, option: str) -> None:
    """Raise FolderError or RecipeError where the features or the kept results cannot be used.

    option: the name of the setting that gives the features, for the message.
    """
    evaluation.results.check()
    if evaluation.features_path is None:
        _check_kept(evaluation)
        return
    if not evaluation.features_path.exists():
        raise FolderError(
            f"{option} must be a folder of a vision model or a weights file of the published "
            f"Inception, and {evaluation.features_path} does not exist. Use `fewstep features "
            "train`, or leave it out."
        )
    x, _ = evaluation.dataset.batch(torch.zeros(1, dtype=torch.int64))
    try:
        evaluation.features(x)
    except ShapeError as error:
        raise RecipeError(f"{option}: {error}") from None


def _check_kept(evaluation: Evaluation) -> None:
    if evaluation.data.name not in DATASETS:
        kept_features(evaluation)
    elif (evaluation.folder / FILE).exists():
        _ = evaluation.features  # refuses a file that is damaged or of other data


def _check_teachers(run: Run, teachers: Sequence[Path]) -> None:
    cards = [card_in(folder) for folder in teachers]
    is_given = any(card.is_teacher for card in cards)
    if cards and not is_given and not run.workspace.is_done(TEACHER):
        raise FolderError(
            "a report measures against a guided teacher, and none was given. Add its folder with "
            "--teacher."
        )
    stage_one = any(card.stage.kind == "guidance-distillation" for card in cards)
    given = STAGE_ONE if stage_one or run.workspace.is_done(STAGE_ONE) else None
    for stage in run.plan:
        if stage.parent == STAGE_ONE != given and all(s.name != STAGE_ONE for s in run.plan):
            raise FolderError(
                f"{stage.name} starts from a model of stage one, and this recipe does not make "
                "one. Add its folder with --teacher, beside that of its teacher."
            )
    for card in cards:
        outside = [w for w in run.recipe.evaluate.w if not _within(w, card.w_range)]
        if outside and card.w_range is not None:
            low, high = card.w_range
            raise RecipeError(
                f"evaluate.w must lie in [{low:g}, {high:g}], the range of {card.name}, got "
                f"{outside[0]:g}. Use --set evaluate.w with values in that range."
            )


def _within(w: float, w_range: tuple[float, float] | None) -> bool:
    return w_range is None or w_range[0] <= w <= w_range[1]


def timesteps_in(folder: Path) -> StockClock | None:
    """Return the timesteps of a model folder; None for the native clock."""
    folder = local(folder)
    return read_clock(folder) if is_pipeline(folder) else None


def _timesteps_of_run(run: Run, teachers: Sequence[Path]) -> StockClock | None:
    """Return the timesteps of the models that a run has or will make; None for the native clock."""
    folders = [Path(f) for f in teachers]
    folders += [run.folder(name) for name in (TEACHER, STAGE_ONE) if run.workspace.is_done(name)]
    latents = run.recipe.latents
    if not folders and latents is not None and latents.folder is not None:
        # A teacher that is trained here starts from the network of such a folder.
        folder = local(latents.folder)
        if not is_pipeline(folder):
            return None
        takes = "class" if card_in(folder).num_classes else "prompt"
        return read_clock(folder) if takes == latents.cond else None
    return timesteps_in(folders[0]) if folders else None


def fit_steps(
    settings: EvaluateConfig, timesteps: StockClock | None
) -> tuple[EvaluateConfig, list[str]]:
    """Return the settings with numbers of steps that the clock has, and what was changed.

    Raises RecipeError for a number that differs from the default and does not fit.
    """
    clock: Clock = cosine if timesteps is None else timesteps.grid
    total = TIMESTEPS if timesteps is None else len(timesteps)
    changed: dict[str, int | tuple[int, ...]] = {}
    notes = []
    by_solver = settings.reference_sampler in SOLVERS
    for key in COUNTS[by_solver:]:
        given = getattr(settings, key)
        default = EvaluateConfig.model_fields[key].default
        counts = (given,) if isinstance(given, int) else given
        fitting = tuple(_fit(n, key, given == default, clock, total) for n in counts)
        if fitting != counts:
            changed[key] = fitting[0] if isinstance(given, int) else tuple(dict.fromkeys(fitting))
            notes.append(
                f"evaluate.{key} is {_listed(fitting)} instead of the default {_listed(counts)}, "
                f"which does not divide the {total} timesteps of these models."
            )
    _check_solvers(settings, timesteps, total)
    ws = tuple(dict.fromkeys(settings.w))
    return settings.model_copy(update={**changed, "w": ws}), notes


def _check_solvers(settings: EvaluateConfig, timesteps: StockClock | None, total: int) -> None:
    asked = {"solver_steps": settings.solver_steps}
    if settings.reference_sampler in SOLVERS:
        asked["reference_steps"] = (settings.reference_steps,)
    for key, counts in asked.items():
        for n in counts:
            if isinstance(timesteps, FlowClock):
                raise RecipeError(
                    f"evaluate.{key} must not use {' or '.join(SOLVERS)} with a flow-matching "
                    f"model, got {n} steps. Leave evaluate.solver_steps out, and set "
                    "evaluate.reference_sampler=heun."
                )
            if not 1 <= n <= total:
                raise RecipeError(f"evaluate.{key} must be from 1 to {total}, got {n}. Change it.")


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))


def _fit(steps: int, key: str, is_default: bool, clock: Clock, total: int) -> int:
    try:
        check_steps(steps, clock, f"evaluate.{key}")
    except RecipeError:
        if not is_default:
            raise
        return nearest_divisor(steps, total)
    return steps


def check_steps(
    steps: int,
    clock: Clock,
    option: str,
    error: Callable[[str], Exception] = RecipeError,
) -> None:
    """Raise an error that names the option where a clock has no grid of so many steps."""
    if not 1 <= steps <= MAX_STEPS:
        raise error(f"{option} must be from 1 to {MAX_STEPS:,}, got {steps:,}.")
    try:
        clock(steps)
    except GridError as found:
        raise error(f"{option}: {found}") from None


def nearest_divisor(steps: int, total: int) -> int:
    """Return the divisor of total that is nearest to steps, by ratio; the smaller of two."""
    divisors = (n for n in range(1, total + 1) if total % n == 0)
    return min(divisors, key=lambda n: (max(n, steps) / min(n, steps), n))
