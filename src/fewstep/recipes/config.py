"""A recipe: everything that a study is told, as one YAML file, checked before anything runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fewstep.atomic import atomic_write
from fewstep.data import DataConfig
from fewstep.distill.match import WALK
from fewstep.distill.plan import STAGE_ONE, TEACHER, Plan, Stage, student_name
from fewstep.distill.trajectory import States
from fewstep.errors import RecipeError, did_you_mean
from fewstep.models import Lora, UNetConfig
from fewstep.train import Optimisation, TrainConfig

BUILT_IN = Path(__file__).parent


class Part(BaseModel):
    """A part of a recipe: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TeacherConfig(Optimisation):
    """Training of the guided teacher. dropout: how often the label is dropped."""

    updates: int = Field(3000, ge=1)
    dropout: float = Field(0.1, ge=0.0, lt=1.0)


class StageConfig(Part):
    """One student of the plan (`fewstep.distill.plan.Stage`); steps is left out for stage one.

    updates, lr and states default to those of `distill`; the name to stage-one, student-4, ...
    """

    parent: str
    name: str | None = None
    steps: int | None = Field(None, ge=1)
    substeps: int = Field(2, ge=1)
    order: Literal[1, 2] = 1
    stride: Literal[1, 2] = 1
    direction: Literal["decode", "encode"] = "decode"
    pair: bool = False
    updates: int | None = Field(None, ge=1)
    lr: float | None = Field(None, gt=0)
    states: States | None = None


class DistillConfig(Optimisation):
    """Both stages: the range of w, the plan, and what every student's training shares.

    lora: train an adapter in place of every weight; null trains every weight.
    states: that students learn at: "noised" data, or those of the teacher's own "trajectory".
    """

    w: tuple[float, float] = (0.0, 4.0)
    updates: int = Field(500, ge=1)
    lora: Lora | None = None
    states: States = "noised"
    stages: tuple[StageConfig, ...] = ()

    @model_validator(mode="after")
    def _range(self) -> DistillConfig:
        if not self.w[0] <= self.w[1]:
            raise ValueError(f"w = {self.w} must be [low, high] with low <= high")
        return self

    @model_validator(mode="after")
    def _walkable(self) -> DistillConfig:
        part = self.batch_size // self.accumulate
        for s in self.stages:
            if (s.states or self.states) == "noised":
                continue
            if (s.steps or WALK) > part:
                raise ValueError(
                    f"a batch of {part} cannot hold a trajectory of {s.steps or WALK} states; "
                    "give a larger batch, fewer steps, or states: noised"
                )
            if s.stride == 2 and s.direction == "encode":
                raise ValueError("an encoder of stride 2 has no trajectories; use states: noised")
        return self

    def plan(self) -> Plan:
        """Return the stages as a plan. Raises RecipeError where it does not hang together."""
        return Plan(tuple(self._stage(s) for s in self.stages))

    def _stage(self, s: StageConfig) -> Stage:
        name = STAGE_ONE
        if s.steps is not None:
            name = student_name(s.steps, s.stride, s.direction, s.pair)
        states = s.states or self.states
        shared = (s.steps, s.substeps, s.stride, s.direction, s.pair, states, s.order)
        return Stage(s.name or name, s.parent, s.updates or self.updates, *shared)

    def lr_of(self, stage: Stage) -> float:
        """Return the learning rate of a stage of the plan."""
        own = {self._stage(s).name: s.lr for s in self.stages}[stage.name]
        return own or self.lr


class LatentConfig(Part):
    """Latents in place of images, encoded once and kept (`fewstep.data.cache_latents`).

    Attributes:
        folder: of the parts that encode: a stock pipeline's, or one with `vae/` in it; by default
            the teacher's own. A run that trains its teacher starts from the network of a stock
            pipeline that draws by the same conditions.
        cond: what the model is told: prompts, made of `data.captions`, or the class.
        negative_prompt: what the teacher's unconditional pass is told, in every student's weights
            from then on; by default what its own pipelines tell it: the empty prompt, or zeros.
        flip: encode the mirror image of every image too.
        dtype: in which latents and embeddings are kept.
        shard_size: examples a file.
        root: folder of caches; by default latents in $FEWSTEP_CACHE or the user's cache.
    """

    folder: str | None = None
    cond: Literal["prompt", "class"] = "prompt"
    negative_prompt: str | None = None
    flip: bool = False
    dtype: Literal["float32", "float16"] = "float32"
    shard_size: int = Field(1024, ge=1)
    root: str | None = None


class EvaluateConfig(Part):
    """Which cells to measure.

    Attributes:
        w: guidance weights.
        samples: images a cell; the same noise and classes in every cell.
        reference_steps: of the many-step teacher that paired distances refer to.
        teacher_steps, stage_one_steps: other numbers of steps to measure these at.
        solver_steps: numbers of steps at which the teacher is measured under the solvers of
            `fewstep.models.solvers.SOLVERS` too.
        features: folder of a transformers vision model to look through, or a weights file of
            the published Inception; without it the digits have features of their own, and other
            data get a classifier trained on them.
        batch_size: of sampling; the images do not depend on it.
    """

    w: tuple[float, ...] = Field((0.0, 1.0, 2.0, 4.0), min_length=1)
    samples: int = Field(2000, ge=2)
    reference_steps: int = Field(256, ge=1)
    teacher_steps: tuple[int, ...] = (8, 4, 2, 1)
    stage_one_steps: tuple[int, ...] = (64,)
    solver_steps: tuple[int, ...] = ()
    features: str | None = None
    batch_size: int = Field(500, ge=1)


class Recipe(Part):
    """A study, from data to report.

    `about` says what the recipe should reach and on what that was measured, or "unmeasured".
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    about: str = "unmeasured"
    seed: int = Field(0, ge=0)
    data: DataConfig = DataConfig()
    latents: LatentConfig | None = None
    network: UNetConfig = UNetConfig()
    teacher: TeacherConfig = TeacherConfig()
    distill: DistillConfig = DistillConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="before")
    @classmethod
    def _conditions(cls, given: Any) -> Any:
        """Set data.cond from latents.cond: for prompts, a column of captions is preferred."""
        latents = given.get("latents") if isinstance(given, dict) else None
        cond = getattr(latents, "cond", None)
        if isinstance(latents, dict):
            cond = latents.get("cond", "prompt")
        if cond not in ("prompt", "class"):
            return given
        data = given.get("data", {})
        if isinstance(data, DataConfig):
            return {**given, "data": data.model_copy(update={"cond": cond})}
        return {**given, "data": {**data, "cond": cond}} if isinstance(data, dict) else given

    @model_validator(mode="after")
    def _inside(self) -> Recipe:
        if self.latents is None and self.data.cond == "prompt":
            raise ValueError("data.cond=prompt needs `latents:`; models of images take classes")
        low, high = self.distill.w
        outside = [w for w in self.evaluate.w if not low <= w <= high]
        if outside:
            raise ValueError(
                f"evaluate.w has {outside[0]:g}, outside distill.w [{low:g}, {high:g}]"
            )
        if self.latents is not None and (self.data.flip or self.data.crop):
            raise ValueError(
                "data.flip and data.crop are of images, and latents are encoded once; set "
                "latents.flip to have mirror images too"
            )
        return self

    def train_config(self, stage: Stage | None) -> TrainConfig:
        """Return the training of a stage, or with None of the teacher."""
        source: Optimisation = self.teacher if stage is None else self.distill
        shared = {k: getattr(source, k) for k in Optimisation.model_fields}
        if stage is None:
            return TrainConfig(**shared, updates=self.teacher.updates)
        return TrainConfig(**{**shared, "lr": self.distill.lr_of(stage)}, updates=stage.updates)


def built_in_recipes() -> list[str]:
    """Return the names of the recipes that come with fewstep."""
    return sorted(p.stem for p in BUILT_IN.glob("*.yaml"))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe by name or by path of a YAML file, with `key.key=value` overrides applied.

    Raises RecipeError for an unknown name or file, a line that is not YAML, an unknown key (with
    the nearest known one), or a value that is not allowed; always with the key.
    """
    path = BUILT_IN / f"{name}.yaml" if name in built_in_recipes() else Path(name)
    if not path.is_file():
        known = built_in_recipes()
        raise RecipeError(
            f"recipe {name!r} is neither built in ({', '.join(known)}) nor a YAML file."
            + did_you_mean(name, known)
        )
    data = _parse(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(data, dict):
        raise RecipeError(f"{path} does not hold keys and values; a recipe starts with `name:`.")
    for override in overrides:
        _override(data, override)
    return check_recipe(data, str(path))


def check_recipe(data: dict[str, Any], where: str) -> Recipe:
    """Return the checked recipe. Raises RecipeError for the first wrong key, or a wrong plan."""
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"{where}: {_explain(first)}") from None
    recipe.distill.plan()  # a plan that does not hang together is a wrong recipe
    return recipe


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe; `load_recipe` of it gives the same recipe."""
    text = yaml.safe_dump(json.loads(recipe.model_dump_json()), sort_keys=False)
    atomic_write(path, text.encode())


def differences(a: Recipe, b: Recipe) -> list[str]:
    """Return the dotted keys in which two recipes differ."""
    flat_a, flat_b = (dict(_flatten(r.model_dump(mode="json"))) for r in (a, b))
    return [k for k in sorted({*flat_a, *flat_b}) if flat_a.get(k) != flat_b.get(k)]


def _flatten(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, data


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise RecipeError(f"{where}{line} is not YAML: {problem}.") from None


def _override(data: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"--set {override!r}; write it as key.key=value, say distill.lr=1e-3.")
    where: Any = data
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        value = _parse(text, f"--set {dotted}") if last else None
        if isinstance(where, list):
            if not key.isdigit() or int(key) >= len(where):
                raise RecipeError(
                    f"--set {dotted}: {key!r} is no place in a list of {len(where)}; "
                    f"use 0 to {len(where) - 1}."
                )
            where[int(key)] = value if last else where[int(key)]
            where = where[int(key)]
        elif isinstance(where, dict):
            where[key] = value if last else where.get(key) or {}
            where = where[key]
        else:
            raise RecipeError(f"--set {dotted}: {'.'.join(keys[:depth])} has no keys inside it.")


def _explain(error: Any) -> str:
    keys = [str(k) for k in error["loc"]]
    where = ".".join(keys) or "recipe"
    if error["type"] == "extra_forbidden":
        allowed = _fields_at(keys[:-1])
        hint = did_you_mean(keys[-1], allowed) or f" It may be {', '.join(allowed)}."
        return f"{where} is not a key.{hint}"
    message = str(error["msg"]).removeprefix("Value error, ")
    given = "" if error["type"] in ("value_error", "missing") else f" (given {error['input']!r})"
    return f"{where}: {message}{given}."


def _fields_at(keys: Sequence[str]) -> list[str]:
    model: type[BaseModel] = Recipe
    for key in keys:
        if key.isdigit():
            continue
        annotation = model.model_fields[key].annotation if key in model.model_fields else None
        inner = next(iter(getattr(annotation, "__args__", ())), annotation)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


__all__ = ["TEACHER", "Recipe", "built_in_recipes", "check_recipe", "load_recipe", "save_recipe"]
