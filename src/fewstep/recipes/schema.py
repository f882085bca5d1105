"""The keys of a recipe, their defaults and their bounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from fewstep.data import DataConfig
from fewstep.distill.consistency import (
    consistency_distillation,
    takes_trajectories,
)
from fewstep.distill.guidance import WALK
from fewstep.distill.plan import DEFAULT_KINDS, STAGE_ONE, TEACHER, Plan, Stage
from fewstep.distill.trajectory import States
from fewstep.models import Lora, UNetConfig
from fewstep.train import Optimisation, TrainConfig
from fewstep.train.config import MOST_UPDATES

MOST_STEPS = 10_000
NO_DATA = "no_data"  # type of the error of a recipe that does not name its data
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
W = Annotated[float, Field(ge=-1000.0, le=1000.0, allow_inf_nan=False)]


class Part(BaseModel):
    """A part of a recipe: unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TeacherConfig(Optimisation):
    """Training of the guided teacher.

    Attributes:
        updates: of the optimiser.
        dropout: probability that an example loses its condition, which trains the unconditional
            prediction that classifier-free guidance needs.
    """

    updates: int = Field(3000, ge=1, le=MOST_UPDATES)
    dropout: float = Field(0.1, ge=0.0, lt=1.0)

    @property
    def stage(self) -> Stage:
        """The training as a stage, which the card of the teacher keeps."""
        settings = self.model_dump(include={"updates", "lr", "dropout"})
        return Stage(TEACHER, "data", kind="pretraining", **settings)


class DistillConfig(Optimisation):
    """Both stages: the range of w, the plan, and the settings that all students share.

    Attributes:
        w: range [low, high] of the guidance weight that students are trained for.
        updates: of every stage that has none of its own.
        lora: train a LoRA adapter; null trains every weight.
        teacher_dtype: in which the matrices of the teacher's weights are held while students are
            trained; bfloat16, to save memory, needs precision: bf16. With `lora` they are the
            student's frozen weights too.
        states: what students are trained on: "noised" data, or the states of the teacher's own
            "trajectory". A stage may have its own.
        stages: the students to make, in order.
    """

    w: tuple[W, W] = (0.0, 4.0)
    updates: int = Field(500, ge=1, le=MOST_UPDATES)
    lora: Lora | None = None
    teacher_dtype: Literal["float32", "bfloat16"] = "float32"
    states: States = "noised"
    stages: tuple[Stage, ...] = Field((), max_length=1000)

    @model_validator(mode="after")
    def _range(self) -> DistillConfig:
        if not self.w[0] <= self.w[1]:
            raise ValueError(
                f"w must be [low, high] with low <= high, got [{self.w[0]:g}, {self.w[1]:g}]"
            )
        return self

    @model_validator(mode="after")
    def _check_dtype(self) -> DistillConfig:
        if self.teacher_dtype == "bfloat16" and self.precision != "bf16":
            raise ValueError(
                "teacher_dtype must be float32 unless precision is bf16, got bfloat16 and "
                f"precision {self.precision}; set precision: bf16 too"
            )
        return self

    @model_validator(mode="after")
    def _check_stages(self) -> DistillConfig:
        for s in self.stages:
            part = self.batch_size // self.accumulate * s.pool
            if s.kind == "pretraining":
                raise ValueError(
                    "stages must be distilled from a model, got the kind pretraining; train the "
                    "teacher by the settings in `teacher:`"
                )
            if s.name == STAGE_ONE and s.steps is not None:
                raise ValueError(
                    f"the name {STAGE_ONE} belongs to the stage without steps; choose another name"
                )
            if s.any_steps:  # a batch holds a part of a trajectory as well
                continue
            if s.kind == consistency_distillation.name:
                if takes_trajectories(s, self.states) and part % s.substeps:
                    raise ValueError(
                        f"a batch of {part} must be a multiple of substeps, the {s.substeps} "
                        "states of a trajectory; change one of them"
                    )
            elif s.kind not in DEFAULT_KINDS:  # the others draw their own samples
                continue
            elif (s.states or self.states) == "trajectory" and (s.steps or WALK) > part:
                raise ValueError(
                    f"a batch of {part} cannot hold a trajectory of {s.steps or WALK} states; "
                    "give a larger batch_size, a smaller accumulate, fewer steps, or states: noised"
                )
        return self

    def plan(self) -> Plan:
        """Return the stages as a plan, each with the settings that it shares with the others.

        Raises RecipeError for stages that do not fit together.
        """
        shared = {"updates": self.updates, "lr": self.lr, "states": self.states}
        own = [s.model_dump(include=set(shared), exclude_none=True) for s in self.stages]
        stages = zip(self.stages, own, strict=True)
        return Plan(tuple(s.model_copy(update={**shared, **mine}) for s, mine in stages))


class LatentConfig(Part):
    """Latents in place of images, encoded once and cached (`fewstep.data.cache_latents`).

    Attributes:
        folder: folder of the encoders: a stock pipeline, or a folder with `vae/` in it; by default
            the teacher's. A run that trains its teacher starts from the network of a stock
            pipeline that takes the same condition.
        cond: the model's condition: prompts, made from `data.captions`, or the class.
        negative_prompt: the condition of the teacher's unconditional pass, fixed in every student's
            weights; by default that of its own pipelines: the empty prompt, or zeros.
        max_sequence_length: argument of the stock pipeline with which prompts are encoded, kept in
            the card of every model; by default the pipeline's own. A smaller one makes training
            cheaper where prompts are short. In Stable Diffusion 3 it is the number of T5's tokens,
            or of the zeros in their place.
        flip: also encode the mirror image of every image.
        dtype: precision of the cached latents and embeddings.
        shard_size: examples per file.
        root: folder of caches; by default `latents` in $FEWSTEP_CACHE or the user's cache.
    """

    folder: str | None = None
    cond: Literal["prompt", "class"] = "prompt"
    negative_prompt: str | None = None
    max_sequence_length: int | None = Field(None, ge=1, le=512)
    flip: bool = False
    dtype: Literal["float32", "float16"] = "float32"
    shard_size: int = Field(1024, ge=1, le=1_000_000)
    root: str | None = None

    @model_validator(mode="after")
    def _has_prompts(self) -> LatentConfig:
        if self.cond == "class" and self.max_sequence_length is not None:
            raise ValueError("max_sequence_length is of prompts; leave it out with cond: class")
        return self


class EvaluateConfig(Part):
    """What to measure.

    Attributes:
        w: guidance weights.
        samples: images per cell; the same noise and classes in every cell.
        reference_steps: steps of the teacher whose images paired distances refer to.
        reference_sampler: sampler of these images: "deterministic" (DDIM), "heun", "dpm-solver++"
            or "unipc". The last three are of second order, and need fewer steps.
        teacher_steps, stage_one_steps: other numbers of steps to measure these models at.
        consistency_steps: numbers of steps to measure consistency students at.
        solver_steps: numbers of steps at which the teacher is also measured with the solvers of
            `fewstep.measure.solvers.SOLVERS`.
        fd_to_teacher: whether to measure the Fréchet distance to the teacher's samples of another
            seed, for which the reference images are drawn twice.
        features: the feature extractor: folder of a transformers vision model, or a weights file
            of the published Inception; without it the digits have features of their own, and
            other data get a classifier trained on them.
        batch_size: images that are drawn at once; they do not depend on it.
    """

    w: tuple[W, ...] = Field((0.0, 1.0, 2.0, 4.0), min_length=1, max_length=1000)
    samples: int = Field(2000, ge=2, le=10_000_000)
    reference_steps: Steps = 256
    reference_sampler: Literal["deterministic", "heun", "dpm-solver++", "unipc"] = "deterministic"
    teacher_steps: tuple[Steps, ...] = Field((8, 4, 2, 1), max_length=1000)
    stage_one_steps: tuple[Steps, ...] = Field((64,), max_length=1000)
    consistency_steps: tuple[Steps, ...] = Field((4, 2, 1), max_length=1000)
    solver_steps: tuple[Steps, ...] = Field((), max_length=1000)
    fd_to_teacher: bool = True
    features: str | None = None
    batch_size: int = Field(500, ge=1, le=1_000_000)


class TrackConfig(Part):
    """Trackers that follow the training of every stage.

    Attributes:
        trackers: names of accelerate's trackers, for example [tensorboard, wandb]; none by default.
        images_every: also send samples of the student every so many updates: 8 images at each of
            the first three of evaluate.w; null sends none. It needs trackers.
    """

    trackers: tuple[str, ...] = Field((), max_length=100)
    images_every: int | None = Field(None, ge=1, le=MOST_UPDATES)


class Recipe(Part):
    """A study, from data to report.

    Attributes:
        name: of the run; its folder is runs/NAME by default. Lower-case letters, digits and "-".
        about: what the recipe should reach and on what that was measured, or "unmeasured".
        seed: of the weights, the order of the data, and all draws.
        data: the images.
        latents: encode images and prompts once, for latent models; null for models of pixels.
        network: of a teacher that is trained from nothing, and the w input of every student.
        teacher: its training.
        distill: the students.
        evaluate: what `fewstep report` measures.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)
    about: str = "unmeasured"
    seed: int = Field(0, ge=0, lt=2**63)
    data: DataConfig = DataConfig()
    latents: LatentConfig | None = None
    network: UNetConfig = UNetConfig()
    teacher: TeacherConfig = TeacherConfig()
    distill: DistillConfig = DistillConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    track: TrackConfig = TrackConfig()

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
                f"evaluate.w must lie inside distill.w, which is [{low:g}, {high:g}], and "
                f"{outside[0]:g} is outside distill.w; change one of them"
            )
        if self.latents is not None and (self.data.flip or self.data.crop):
            raise ValueError(
                "data.flip and data.crop must be off where latents are encoded once; set "
                "latents.flip=true to train on mirror images too"
            )
        return self

    @model_validator(mode="after")
    def _has_data(self) -> Recipe:
        if "name" not in self.data.model_fields_set:
            raise PydanticCustomError(
                NO_DATA,
                "data.name is required; add the path of your images, or digits for the built-in "
                "data set, for example with --set data.name=FOLDER",
            )
        return self

    @model_validator(mode="after")
    def _condition(self) -> Recipe:
        # What the model is conditioned on also decides which column of the data is read.
        if self.latents is not None and "cond" in DataConfig.model_fields:
            data = self.data.model_copy(update={"cond": self.latents.cond})
            object.__setattr__(self, "data", data)
        return self

    def train_config(self, stage: Stage | None) -> TrainConfig:
        """Return the training of a stage, or with None of the teacher."""
        source = self.teacher if stage is None else self.distill
        shared = source.model_dump(include=set(TrainConfig.model_fields))
        own = {} if stage is None else stage.model_dump(include={"updates", "lr", "pool"})
        return TrainConfig(**{**shared, **{k: v for k, v in own.items() if v is not None}})
