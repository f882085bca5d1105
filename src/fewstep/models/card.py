"""`fewstep.json`: what a model folder says of itself beside its stock parts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fewstep.distill.plan import TEACHER, Stage
from fewstep.distill.steps import Direction
from fewstep.errors import FolderError, first_wrong
from fewstep.files.foreign import describe
from fewstep.files.parts import parse_json

CARD = "fewstep.json"
FORMAT = 2
MAX_SIZE = 65_536  # of a side or of the channels
MAX_NAME = 200
CLOCK = "native-1024"  # of the families that fewstep trains from scratch
NATIVE = ("unet-class", "latent-class")
OWN = "own"  # the family of networks that users bring
TAUGHT = Stage(TEACHER, "data", kind="pretraining")  # of a teacher from elsewhere


Fact: TypeAlias = bool | int | float | str | list[str] | None


class Parent(BaseModel):
    """A model that another one was made from: its name and the hash of its weights."""

    model_config = ConfigDict(extra="forbid")
    name: str
    sha256: str


class Adapter(BaseModel):
    """The LoRA adapter of a student.

    Attributes:
        rank, alpha, targets: as in `fewstep.models.Lora`.
        merged: it is in the weights of the folder; else the folder holds it alone.
        base: where the folder of the network under it is, from this folder or from the root.
        base_sha256: hash of that network's weights.
    """

    model_config = ConfigDict(extra="forbid")
    rank: int = Field(ge=1, le=16_384)
    alpha: float = Field(gt=0.0, allow_inf_nan=False)
    targets: tuple[str, ...] = Field(min_length=1)
    merged: bool = True
    base: str | None = None
    base_sha256: str = ""


class Card(BaseModel):
    """What the weights alone do not say.

    Attributes:
        stage: how it was made; of a teacher (conditional network, guided by two passes) the kind
            is "pretraining".
        w_range: the w that a student was trained for; None for a teacher, which takes any.
        w_band: features of w faster than so many radians per unit were zero; None: none were;
            "one": all but sin(0.1 w) were.
        num_classes, class_names, null_class: of a class-conditional model; 0 classes elsewhere.
        prediction: of a network on a table of betas: "epsilon", "v_prediction" or "sample"; "flow"
            of one on a clock of rectified flow; None of v.
        null_prompt: prompt of the unconditional pass, where there are prompts: "", a fixed
            negative prompt, or None: zeros.
        max_sequence_length: argument of the stock pipeline with which prompts are encoded; None
            for the pipeline's own.
        lora: of a student that was made by training an adapter; None elsewhere.
        parents: nearest first, back to the teacher.
        teacher: the model whose answers made the targets, where it is not the nearest parent, such
            as the real score of distribution matching; None elsewhere.
        training: how it was made: seed, updates, batch size, data hash, fingerprint of the run;
            "images" says how they were read.
        figures: measured ones, under names that say what was measured.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal[2] = 2
    fewstep: str
    family: str
    name: str
    stage: Stage = TAUGHT
    clock: str
    shape: tuple[int, ...]
    num_classes: int = Field(0, ge=0)
    class_names: tuple[str, ...] = ()
    null_class: int = 0
    prediction: str | None = None
    null_prompt: str | None = None
    max_sequence_length: int | None = Field(None, ge=1)
    w_range: tuple[float, float] | None = None
    w_band: float | Literal["one"] | None = 1.0
    lora: Adapter | None = None
    parents: tuple[Parent, ...] = ()
    teacher: Parent | None = None
    weights_sha256: str = ""
    training: dict[str, Fact | dict[str, Fact]] = {}
    figures: dict[str, float] = {}

    @model_validator(mode="after")
    def _has_classes(self) -> Card:
        if self.family in NATIVE and self.num_classes < 1:
            raise ValueError("num_classes must be at least 1 in this family")
        return self

    @property
    def is_teacher(self) -> bool:
        """Whether it is a guided teacher, and no student."""
        return self.stage.kind == TAUGHT.kind

    @property
    def steps(self) -> int | None:
        """The number of steps that it was made for; None for any."""
        return self.stage.steps

    @property
    def sampler(self) -> str | None:
        """Name of the sampler that it was made for; None for any."""
        return self.stage.sampler

    @property
    def direction(self) -> Direction:
        """Where it goes: "encode" from images to noise, else "decode"."""
        return self.stage.direction

    @property
    def pair(self) -> bool:
        """Whether it is a student that is guided by two passes of its own, like its teacher."""
        return self.stage.pair


def named(card: Card) -> Parent:
    """Return a model as the cards of others name it."""
    return Parent(name=card.name, sha256=card.weights_sha256)


def is_folded(card: Card) -> bool:
    """Whether a card is that of a student whose w or number of steps was fixed, and not yet saved.

    Its weights have no hash, and its nearest parent is the student that was folded.
    """
    return not card.weights_sha256 and bool(card.parents) and card.parents[0].name == card.name


def lineage(card: Card) -> tuple[Parent, ...]:
    """Return the parents of a child of this model: the model itself, then its own parents."""
    return (named(card), *card.parents)


def read_card(folder: Path) -> Card:
    """Return the card of a model folder. Raises FolderError where there is none, or a bad one."""
    path = folder / CARD
    if not folder.exists():
        raise FolderError(
            f"{folder} does not exist; give the folder of a model, or the id of a hub's model "
            "(owner/name)."
        )
    if not path.is_file():
        explanation = describe(folder)
        if explanation is not None:
            raise FolderError(explanation)
        inside = sorted(p.parent.name for p in folder.glob(f"*/{CARD}"))
        hint = f" There are models in it: {', '.join(inside)}." if inside else ""
        raise FolderError(
            f"{folder} is not a fewstep model: it has no {CARD}. Give a folder that "
            f"`fewstep train`, `distill` or `demo` made, or one of a diffusers pipeline.{hint}"
        )
    data = parse_json(path)
    found = data.get("format") if isinstance(data, dict) else None
    if isinstance(data, dict) and found == 1 and found is not True:
        data, found = _from_format_1(data), FORMAT
    if isinstance(data, dict) and isinstance(data.get("stage"), dict):
        data["stage"].pop("shortcut", None)  # a setting of development versions
    if found != FORMAT:
        raise FolderError(
            f"{path} has format {str(found)[:40]!r}; this fewstep reads the formats 1 and "
            f"{FORMAT}. Use the fewstep that wrote it."
        )
    try:
        card = Card.model_validate(data)
    except (ValidationError, RecursionError, OverflowError) as error:
        raise FolderError(f"{path}: {_first(error)} The folder is damaged.") from None
    wrong = contradiction(card)
    if wrong is not None:
        raise FolderError(f"{path}: {wrong}. Copy the file again.")
    return card


def _first(error: Exception) -> str:
    return first_wrong(error) if isinstance(error, ValidationError) else f"{type(error).__name__}."


def _from_format_1(data: dict[str, Any]) -> dict[str, Any]:
    """Return a card of format 1, which had the settings of its stage beside the rest, as 2."""
    flat = ("stage", "steps", "substeps", "order", "stride", "direction", "pair", "sampler")
    settings = {k: data[k] for k in flat if data.get(k) is not None}
    rest = {k: v for k, v in data.items() if k not in flat}
    kinds = {"teacher": TAUGHT.kind, "match": "guidance-distillation", "halve": "step-distillation"}
    settings.pop("sampler", None)  # follows from stride and direction
    kind = settings.pop("stage", None)
    match data.get("parents"):
        case [{"name": parent}, *_]:
            pass
        case _:
            parent = TAUGHT.parent
    stage = {"name": data.get("name"), "kind": kinds.get(str(kind), kind), "parent": parent}
    return {**rest, "format": FORMAT, "stage": {**stage, **settings}}


def contradiction(card: Card) -> str | None:
    """Return which facts of a card cannot all be true, and why; None where they can."""
    for name, wrong in _rules(card):
        if wrong:
            return name
    return None


def _rules(card: Card) -> Iterator[tuple[str, bool]]:
    yield from _rules_of_numbers(card)
    yield from _rules_of_classes(card)
    if card.family != OWN:
        student = not card.is_teacher
        yield (
            "w_range must be two numbers for a student of one pass and null elsewhere, got "
            f"{card.w_range} with stage {card.stage.kind!r} and pair {card.pair}",
            (student and not card.pair) != (card.w_range is not None),
        )
    native = card.family in NATIVE
    yield (
        f"clock and prediction must be {CLOCK!r} and null for the family {card.family!r}, got "
        f"{card.clock!r} and {card.prediction!r}",
        native and (card.clock, card.prediction) != (CLOCK, None),
    )
    yield (
        f"prediction must be 'flow' on a clock of rectified flow and nowhere else, got "
        f"{card.prediction!r} and the clock {card.clock!r}",
        (card.prediction == "flow") != card.clock.startswith("flow-"),
    )


def _rules_of_numbers(card: Card) -> Iterator[tuple[str, bool]]:
    sizes = len(card.shape) == 3 or card.family == OWN
    yield (
        f"shape must be channels, height and width from 1 to {MAX_SIZE}, got {card.shape}",
        not sizes or not all(1 <= n <= MAX_SIZE for n in card.shape),
    )
    low, high = card.w_range or (0.0, 0.0)
    yield (
        f"w_range must be two finite numbers, the lower one first, got {card.w_range}",
        not -math.inf < low <= high < math.inf,
    )
    yield (
        f"w_band must be null, 'one', or a finite number above 0, got {card.w_band}",
        isinstance(card.w_band, float) and not 0 < card.w_band < math.inf,
    )
    values = [*card.figures.values(), *card.training.values()]
    yield (
        "figures and training must hold finite numbers",
        any(isinstance(x, float) and not math.isfinite(x) for x in values),
    )


def _rules_of_classes(card: Card) -> Iterator[tuple[str, bool]]:
    yield (
        f"name must be one line of 1 to {MAX_NAME} characters, got {card.name[:40]!r}",
        not (0 < len(card.name) <= MAX_NAME and card.name.isprintable()),
    )
    if card.family == OWN:
        return
    yield (
        f"null_class must be num_classes, the id after the last class, got {card.null_class} and "
        f"{card.num_classes} classes",
        card.null_class != card.num_classes,
    )
    yield (
        f"class_names must hold one name for each of the {card.num_classes} classes, or none, got "
        f"{len(card.class_names)}",
        len(card.class_names) not in (0, card.num_classes),
    )
