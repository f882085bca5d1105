"""The models of a page, opened once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep.cli.pictures import Opened, open_model
from fewstep.core.denoiser import traits_of
from fewstep.edit import ENCODE
from fewstep.errors import GridError, RangeError

ANY_W = (0.0, 10.0)  # of the slider, for a model that accepts any w
STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 32, 40, 50, 64, 100, 125, 128, 200, 250, 256)
USUAL_STEPS, USUAL_OWN_STEPS = 32, 4


@dataclass(frozen=True)
class Models:
    """Models that draw the same classes, or prompts, at one size.

    Attributes:
        named: every model of the page by its name, the teacher too.
        teacher: name of the model shown beside the others; None for none.
        device: as the user gave it; None for the default.
    """

    named: dict[str, Opened]
    teacher: str | None
    device: str | None

    @property
    def decoders(self) -> list[str]:
        """Names of the models that draw; the teacher only where there is no other."""
        names = [n for n, o in self.named.items() if traits_of(o.model).sampler != ENCODE]
        return [n for n in names if n != self.teacher] or names

    @property
    def encoders(self) -> list[str]:
        """Names of the models that can encode images; those made for it come first."""
        found = {n: traits_of(o.model).sampler for n, o in self.named.items()}
        made = [n for n, sampler in found.items() if sampler == ENCODE]
        return made + [n for n, sampler in found.items() if sampler is None]

    @property
    def first(self) -> Opened:
        """The model that the page opens with."""
        return self.named[self.decoders[0]]

    @property
    def steps(self) -> list[int]:
        """Numbers of steps that the teacher, and each model like it, accept; [] for no model."""
        free = [o for o in self.named.values() if is_free(o)]
        return [n for n in STEPS if free and all(_accepts(o, n) for o in free)]


def open_models(folders: Sequence[Path], teacher: Path | None, device: str | None) -> Models:
    """Return the models of a page.

    Raises RangeError where no model draws, or two draw other things, and as `open_model` does.
    """
    paths = [*folders, *([teacher] if teacher else [])]
    paths = list(dict.fromkeys(path.absolute() if path.exists() else path for path in paths))
    given = {
        path.absolute() if path.exists() else path: path for path in [*folders, teacher] if path
    }
    short = [path.name for path in paths]
    names = [p.name if short.count(p.name) == 1 else str(given[p]) for p in paths]
    named = {name: open_model(given[path], device) for name, path in zip(names, paths, strict=True)}
    # A teacher that is among the models too keeps the place it has there.
    name = None
    if teacher is not None:
        name = names[paths.index(teacher.absolute() if teacher.exists() else teacher)]
    models = Models(named, name, device)
    if not models.decoders:
        raise RangeError(
            f"one model must draw, got {', '.join(names)}, which encode. Add the folder of a "
            "decoding student."
        )
    first, what = models.first, _draws(models.first)
    for opened in named.values():
        if _draws(opened) != what:
            raise RangeError(
                "the models of one page must draw the same classes, or prompts, at one size, got "
                f"{first.card.name} of {_kind(first)} and {opened.card.name} of {_kind(opened)}. "
                "Open one page for each."
            )
    return models


def w_range(opened: Opened) -> tuple[float, float]:
    """Return the range of the slider: the model's, or ANY_W where it accepts any w."""
    return traits_of(opened.model).w_range or ANY_W


def _draws(opened: Opened) -> tuple[object, ...]:
    card = opened.card
    return (card.num_classes, card.class_names, tuple(opened.image_shape))


def _kind(opened: Opened) -> str:
    what = "prompts" if opened.takes_text else f"{opened.card.num_classes} classes"
    return f"{what} at {'x'.join(map(str, opened.image_shape))}"


def is_free(opened: Opened) -> bool:
    """Whether a model is drawn as a teacher is: with any number of steps, by any sampler."""
    traits = traits_of(opened.model)
    return traits.steps is None and traits.sampler is None


def own_steps(opened: Opened) -> list[int]:
    """Numbers of steps of a student that is drawn with a choice of few; [] for other models.

    It is an any-step or a consistency student, whose steps say nothing about the teacher's.
    """
    if opened.card.steps is not None or is_free(opened):
        return []
    counts = opened.card.stage.counts
    return sorted(counts) or [n for n in STEPS if _accepts(opened, n)]


def chosen_steps(own: Sequence[int], wanted: object = None) -> int | None:
    """Return the number of own steps that is wanted, or the usual one where there is none such."""
    if wanted in own:
        return int(str(wanted))
    return USUAL_OWN_STEPS if USUAL_OWN_STEPS in own else max(own, default=None)


def _accepts(opened: Opened, steps: int) -> bool:
    try:
        traits_of(opened.model).clock(steps)
    except GridError:
        return False
    return True
