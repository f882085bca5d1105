"""`fewstep.json`: what a model folder says of itself beside its stock parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fewstep.errors import FolderError

CARD = "fewstep.json"
FORMAT = 1


Told: TypeAlias = bool | int | float | str | list[str] | None


class Parent(BaseModel):
    """A model that this one was made from: its name and the hash of its weights."""

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
    rank: int
    alpha: float
    targets: tuple[str, ...]
    merged: bool = True
    base: str | None = None
    base_sha256: str = ""


class Card(BaseModel):
    """What the weights alone do not say.

    Attributes:
        stage: "teacher" (conditional network, guided by two passes), "match" (stage one: one
            pass, any number of steps) or "halve" (few-step student).
        steps, substeps, order, stride, direction, sampler: of the student; None or default else.
        w_range: of a network told w; None for a teacher, which takes any.
        w_band: features of w faster than so many radians a unit were zero; None: none were.
        pair: a student that is guided by two passes of its own, like its teacher.
        num_classes, class_names, null_class: of a class-conditional model; 0 classes elsewhere.
        prediction: of a network on a table of betas: "epsilon", "v_prediction" or "sample".
        null_prompt: what the unconditional pass was told, where there are prompts: "", a fixed
            negative prompt, or None: zeros.
        lora: of a student that was made by training an adapter; None elsewhere.
        parents: nearest first, back to the teacher.
        training: how it was made: seed, updates, batch size, data hash, fingerprint of the run;
            "images" says how they were read.
        figures: measured ones, under names that say what was measured.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    fewstep: str
    family: str
    name: str
    stage: Literal["teacher", "match", "halve"]
    clock: str
    shape: tuple[int, ...]
    num_classes: int = Field(0, ge=0)
    class_names: tuple[str, ...] = ()
    null_class: int = 0
    prediction: str | None = None
    null_prompt: str | None = None
    w_range: tuple[float, float] | None = None
    w_band: float | None = 1.0
    pair: bool = False
    steps: int | None = None
    substeps: int | None = None
    order: int | None = None
    stride: int = 1
    direction: Literal["decode", "encode"] = "decode"
    sampler: str | None = None
    lora: Adapter | None = None
    parents: tuple[Parent, ...] = ()
    weights_sha256: str = ""
    training: dict[str, Told | dict[str, Told]] = {}
    figures: dict[str, float] = {}

    @model_validator(mode="after")
    def _has_classes(self) -> Card:
        if self.family in ("unet-class", "latent-class") and self.num_classes < 1:
            raise ValueError("num_classes must be at least 1 in this family")
        return self


def read_card(folder: Path) -> Card:
    """Return the card of a model folder. Raises FolderError where there is none, or a bad one."""
    path = folder / CARD
    if not folder.exists():
        raise FolderError(
            f"{folder} does not exist; give the folder of a model, or the id of a hub's model "
            "(owner/name)."
        )
    if not path.is_file():
        inside = sorted(p.parent.name for p in folder.glob(f"*/{CARD}")) if folder.is_dir() else []
        hint = f" There are models in it: {', '.join(inside)}." if inside else ""
        raise FolderError(
            f"{folder} is not a fewstep model: it has no {CARD}. Give a folder that "
            f"`fewstep train`, `distill` or `demo` made, or one of a diffusers pipeline.{hint}"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = data.get("format") if isinstance(data, dict) else None
        if found != FORMAT:
            raise FolderError(
                f"{path} has format {found!r}; this fewstep reads format {FORMAT}. Use the "
                "fewstep that wrote it."
            )
        return Card.model_validate(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FolderError(f"{path} is not JSON ({error}); the folder is damaged.") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise FolderError(f"{path}: {key}: {first['msg']}; the folder is damaged.") from None
