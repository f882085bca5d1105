"""Draw what is on the page, by the public functions, as the commands of the same name do."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from fewstep.cli.masks import mask_files, read_masks
from fewstep.cli.pictures import BATCH, Opened, Sheet, open_pictures, settings_of
from fewstep.core.cond import Cond, repeat_null, take
from fewstep.core.sample import sample
from fewstep.edit import decode, encode, img2img, inpaint, interpolate, transfer
from fewstep.errors import RangeError
from fewstep.folders import encode_prompts
from fewstep.models import model_of

WIDE = 5  # images per row of a grid


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to draw, in the words of the command line.

    Attributes:
        task: name of the command: sample, img2img, inpaint, transfer or interpolate.
        w: guidance weight.
        steps: of models that take any number of steps.
        seed: of the noise.
        cond: classes to draw, as in --cond; None for prompts.
        prompts: to draw; () for classes.
        count: images per class or prompt; of an interpolation, images in all.
        images: files to edit.
        shown: class or prompt of these images, where they are encoded.
        mask: file, white where to draw.
        strength: share of the steps to run.
        w_from: guidance weight of encoding.
    """

    task: str = "sample"
    w: float = 0.0
    steps: int | None = None
    seed: int = 0
    cond: str | None = None
    prompts: tuple[str, ...] = ()
    count: int = 1
    images: tuple[Path, ...] = ()
    shown: str | None = None
    mask: Path | None = None
    strength: float = 0.5
    w_from: float = 0.0

    @property
    def prompt(self) -> str | None:
        """The first prompt; None where there is none."""
        return self.prompts[0] if self.prompts else None


@dataclass(frozen=True)
class Drawn:
    """The rows (n, C, H, W) of a sheet, its columns, its settings, and what it cost per image."""

    rows: list[Tensor]
    columns: int
    settings: dict[str, Any]
    evaluations: float
    milliseconds: float


def no_pause() -> float:
    """Go on at once."""
    return 0.0


class Meter:
    """Evaluations of networks, and seconds, while `running`.

    pause: called before each evaluation; returns seconds that do not count.
    """

    def __init__(self, pause: Callable[[], float]) -> None:
        self.evaluations, self.seconds = 0, 0.0
        self._pause = pause

    @contextmanager
    def running(self, *opened: Opened) -> Iterator[None]:
        """Count what these models do inside, in this thread."""
        thread = get_ident()

        def count(model: Any, arguments: tuple[Any, ...]) -> None:
            if get_ident() == thread:
                self.seconds -= self._pause()
                self.evaluations += len(arguments[0]) * model.passes

        networks = {id(m): m for m in (model_of(o.model) for o in opened)}.values()
        hooks = [network.register_forward_pre_hook(count) for network in networks]
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start
            for hook in hooks:
                hook.remove()

    def of(self, rows: list[Tensor], columns: int, settings: dict[str, Any], count: int) -> Drawn:
        """Return the result with the cost of each of `count` images."""
        return Drawn(rows, columns, settings, self.evaluations / count, 1000 * self.seconds / count)


def columns_of(kinds: int, total: int) -> int:
    """Return the columns of a grid of `total` images, so that a kind stays in its column."""
    return min(total, WIDE // kinds * kinds or WIDE)


def draw(
    one: Opened, encoder: Opened | None, s: Settings, pause: Callable[[], float] = no_pause
) -> Drawn:
    """Return what the command of the same name draws. Raises FewstepError as it does.

    pause: of the `Meter`.
    """
    meter = Meter(pause)
    if s.task == "sample":
        return _sample(one, s, meter)
    if not s.images:
        raise RangeError("there is no image to edit, got none. Upload one, or take drawn ones.")
    if s.task in _EDITS:
        return _EDITS[s.task](one, s, meter)
    if encoder is None:
        raise RangeError(
            "encoding needs a model that can encode, got none. Start the page with an encoder or "
            "with --teacher."
        )
    return _TWO[s.task](encoder, one, s, meter)


def save(drawn: Drawn, one: Opened, path: Path) -> None:
    """Write the sheet as a PNG file that carries its settings, as the command does."""
    sheet = Sheet.planned(
        path,
        one.image_shape,
        len(drawn.rows[0]),
        scale=None,
        columns=drawn.columns,
        rows=len(drawn.rows),
    )
    sheet.save(drawn.rows, [], drawn.settings)


def _sample(one: Opened, s: Settings, meter: Meter) -> Drawn:
    if one.takes_text:
        if not s.prompts:
            raise RangeError("there must be a prompt, got none. Write one per line.")
        names, key, cond = list(s.prompts), "prompt", _encoded(one.folder, s.prompts, one.device)
    else:
        ids = one.classes.ids(s.cond or "", "--cond")
        names, key, cond = [str(k) for k in ids], "cond", torch.tensor(ids)
    total = len(names) * s.count
    columns = columns_of(len(names), total)
    Sheet.planned(Path("a.png"), one.image_shape, total, scale=None, columns=columns)
    index, steps = torch.arange(len(names)).repeat(s.count), one.steps(s.steps)
    with meter.running(one):
        x = sample(
            one.model, take(cond, index), w=s.w, steps=steps, seed=s.seed, batch_size=BATCH
        ).cpu()
    settings = settings_of("sample", [one], w=s.w, steps=steps or one.card.steps, seed=s.seed)
    return meter.of([_images(one, x)], columns, settings | {key: names}, total)


def _edited(one: Opened, s: Settings, meter: Meter, edit: Callable[..., Tensor]) -> Drawn:
    """Return images edited by img2img or inpaint."""
    read, steps = open_pictures(s.images, one), one.steps(s.steps)
    count, rows = len(read.x), [read.images]
    settings: dict[str, Any] = {"steps": steps or one.card.steps}
    shared: dict[str, Any] = {"strength": s.strength, "w": s.w, "seed": s.seed}
    more: dict[str, Any] = {}
    if s.mask is not None:
        shape = one.image_shape
        masks = mask_files([s.mask], read.files, (shape[2], shape[1]))
        more["mask"] = read_masks(masks, one.card.shape, count).to(one.device)
        rows.append(read.images * (1 - read_masks(masks, shape, count)))
        settings["masks"] = [m.name for m in masks]
    cond = _cond(one, s.cond, s.prompt, count, "--cond")
    with meter.running(one):
        x = edit(one.model, read.x, cond=cond, steps=steps, batch_size=BATCH, **shared, **more)
        x = x.cpu()
    settings |= {"cond": s.cond, "prompt": s.prompt, **shared}
    settings = settings_of(s.task, [one]) | settings
    return meter.of([*rows, _images(one, x)], 10, settings, count)


def _inpaint(one: Opened, s: Settings, meter: Meter) -> Drawn:
    if s.mask is None:
        raise RangeError("there must be a mask, got none. Paint over the part to redraw.")
    return _edited(one, s, meter, inpaint)


def _transfer(encoder: Opened, one: Opened, s: Settings, meter: Meter) -> Drawn:
    read = open_pictures(s.images, encoder)
    count = len(read.x)
    prompts = one.takes_text
    shown = _shown(encoder, s, count, "--from")
    targets: list[tuple[str, Cond]] = [(p, _cond(one, None, p, count, "--to")) for p in s.prompts]
    if not prompts:
        ids = one.classes.ids(s.cond or "", "--to")
        targets = [(str(k), torch.full((count,), k)) for k in ids]
    if not targets:
        raise RangeError("there must be something to draw, got nothing. Write a prompt per line.")
    steps = s.steps if None in (encoder.card.steps, one.card.steps) else None
    with meter.running(encoder, one):
        results = [
            transfer(
                encoder.model,
                one.model,
                read.x,
                shown,
                target,
                w=s.w,
                w_from=s.w_from,
                steps=steps,
                batch_size=BATCH,
            ).x.cpu()
            for _, target in targets
        ]
    settings = settings_of("transfer", [encoder, one], w=s.w, w_from=s.w_from)
    settings |= {"from": s.shown, "to": [name for name, _ in targets]}
    settings["steps"] = [o.card.steps or steps for o in (encoder, one)]
    rows = [read.images, *(_images(one, x) for x in results)]
    return meter.of(rows, 10, settings, count * len(targets))


def _interpolate(encoder: Opened, one: Opened, s: Settings, meter: Meter) -> Drawn:
    read = open_pictures(s.images[:2], encoder)
    if len(read.x) != 2:
        raise RangeError(
            f"an interpolation is between 2 images, got {len(read.x)}. Give two images."
        )
    shown = _shown(encoder, s, 2, "--cond")
    wanted = repeat_null(take(shown, slice(0, 1)), s.count)
    if s.cond or s.prompts:
        wanted = _cond(one, s.cond, s.prompt, s.count, "--to")
    with meter.running(encoder, one):
        ends = encode(encoder.model, read.x, shown, w=s.w_from, steps=encoder.steps(s.steps))
        z = interpolate(ends[0], ends[1], s.count)
        x = decode(one.model, z, wanted, w=s.w, steps=one.steps(s.steps), batch_size=BATCH).cpu()
    settings = settings_of("interpolate", [encoder, one], w=s.w, w_from=s.w_from, cond=s.shown)
    settings |= {"to": s.cond or s.prompt, "files": [f.name for f in read.files]}
    return meter.of([_images(one, x)], s.count, settings, s.count)


_EDITS: dict[str, Callable[[Opened, Settings, Meter], Drawn]] = {
    "img2img": lambda one, s, meter: _edited(one, s, meter, img2img),
    "inpaint": _inpaint,
}
_TWO: dict[str, Callable[[Opened, Opened, Settings, Meter], Drawn]] = {
    "transfer": _transfer,
    "interpolate": _interpolate,
}


def _images(one: Opened, x: Tensor) -> Tensor:
    return one.images(x.to(one.device))


def _shown(encoder: Opened, s: Settings, count: int, option: str) -> Cond:
    """Return the condition of the images that are encoded."""
    text = encoder.takes_text
    return _cond(encoder, None if text else s.shown, s.shown if text else None, count, option)


def _cond(one: Opened, classes: str | None, prompt: str | None, count: int, option: str) -> Cond:
    """Return a condition batch as `Opened.cond` does; an encoded prompt is kept."""
    if one.takes_text and prompt and classes is None:
        return repeat_null(_encoded(one.folder, (prompt,), one.device), count)
    return one.cond(classes, prompt or None, count, option)


@functools.lru_cache(maxsize=64)
def _encoded(folder: Path, prompts: tuple[str, ...], device: str) -> Cond:
    return encode_prompts(folder, list(prompts), device=device)
