"""The Python and the command line that draw what is on the page."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from fewstep.cli.pictures import Opened, sheet_scale
from fewstep.cli.web.drawing import Drawn, Settings

ENCODED = ("transfer", "interpolate")  # tasks that encode first
INDENT = " " * 4


def command_line(s: Settings, drawn: Drawn, one: Opened, encoder: Opened | None, **at: Any) -> str:
    """Return the command. at: `out`, the picture's name; `device`, as given or None."""
    folders = [encoder.folder, one.folder] if encoder and s.task in ENCODED else [one.folder]
    lines = [shlex.join(["fewstep", s.task, *map(str, folders)])]
    steps = _steps(s, one, encoder)
    for option, value in _options(s, drawn, one.takes_text):
        lines.append(shlex.join([f"--{option}", str(value)]))
    if steps is not None:
        lines.append(f"--steps {steps}")
    if at["device"] is not None:
        lines.append(f"--device {at['device']}")
    lines.append(shlex.join(["--out", at["out"]]))
    return f" \\\n{INDENT}".join(lines)


def _steps(s: Settings, one: Opened, encoder: Opened | None) -> int | None:
    """Return the steps to pass: None where every model has its own number."""
    used = [one, encoder] if encoder and s.task in ENCODED else [one]
    return s.steps if any(o.card.steps is None for o in used) else None


def _options(s: Settings, drawn: Drawn, text: bool) -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = [("image", image) for image in s.images]
    if s.mask is not None:
        out.append(("mask", s.mask))
    if s.task in ENCODED:
        first = "from" if s.task == "transfer" else "cond"
        key = {"from": "from-prompt", "cond": "prompt"}[first] if text else first
        out.append((key, s.shown))
    wanted, asked = ("to", "to-prompt") if s.task in ENCODED else ("cond", "prompt")
    prompts = s.prompts if s.task in ("sample", "transfer") else s.prompts[:1]
    out += [(asked, prompt) for prompt in prompts] if text else []
    if s.cond and not text:
        out.append((wanted, s.cond))
    out.append(("w", f"{s.w:g}"))
    if s.task in ENCODED and s.w_from:
        out.append(("w-from", f"{s.w_from:g}"))
    if s.task in ("img2img", "inpaint"):
        out.append(("strength", f"{s.strength:g}"))
    if s.task not in ENCODED:
        out.append(("seed", s.seed))
    if s.task == "sample":
        out += [("count", s.count), ("columns", drawn.columns)]
    if s.task == "interpolate":
        out.append(("count", s.count))
    return out


def python(s: Settings, drawn: Drawn, one: Opened, encoder: Opened | None, **at: Any) -> str:
    """Return the program. at: `out`, the picture's name; `device`, as given or None."""
    body = {
        "sample": _sample,
        "img2img": _edit,
        "inpaint": _edit,
        "transfer": _transfer,
        "interpolate": _interpolate,
    }[s.task]
    text, latent = one.takes_text, one.vae is not None
    edits = s.task != "sample"
    folders = [n for n, used in (("encode_prompts", text), ("load_vae", latent and edits)) if used]
    names = [
        ("fewstep", "load"),
        *([("fewstep.data", "read_images")] if edits else []),
        ("fewstep.folders", ", ".join([*folders, "to_images"])),
        *([("fewstep.models", "encode_images")] if latent and edits else []),
        ("fewstep.show.sheet", "rows_of"),
    ]
    lines = ["import fewstep", *(f"from {a} import {b}" for a, b in names[1:]), ""]
    device = f", {one.device!r}" if one.device != "cpu" else ""
    lines.append(f"folder = {json.dumps(str(one.folder), ensure_ascii=False)}")
    lines.append(f"model = fewstep.load(folder{device})")
    if encoder and s.task in ENCODED:
        same = encoder.folder == one.folder
        load = "model" if same else f"fewstep.load({str(encoder.folder)!r}{device})"
        lines.append(f"encoder = {load}")
    if edits:
        lines += _read(s, one, encoder if s.task in ENCODED else one)
    lines += body(s, one, encoder)
    scale = sheet_scale(None, one.image_shape)
    rows = "rows" if edits else "[to_images(model, x)]"
    lines.append(f"rows_of({rows}, {drawn.columns}, {scale}).save({at['out']!r})")
    return "\n".join(lines) + "\n"


def _read(s: Settings, one: Opened, reader: Opened | None) -> list[str]:
    """Return the lines that read the images and make the states x of them."""
    assert reader is not None
    files = [str(image) for image in (s.images[:2] if s.task == "interpolate" else s.images)]
    lines = [f"images = read_images({files!r}, {tuple(one.image_shape)})"]
    if reader.vae is None:
        return [*lines, "x = images" + ("" if one.device == "cpu" else f".to({one.device!r})")]
    where = "" if one.device == "cpu" else f", {one.device!r}"
    moved = "" if one.device == "cpu" else f".to({one.device!r})"
    lines.append(f"vae = load_vae({str(reader.folder)!r}{where})")
    return [*lines, f"x = encode_images(vae, images{moved})"]


def _conds(one: Opened, classes: str | None, prompt: str | None, count: int) -> str:
    """Return the expression of a condition batch of `count`."""
    if one.takes_text:
        return f"encode_prompts({str(one.folder)!r}, {[prompt]!r} * {count}{_device(one)})"
    ids = one.classes.ids(classes or "", "--cond")
    return repr(ids) if len(ids) == count else f"{ids!r} * {count}"


def _device(one: Opened) -> str:
    return "" if one.device == "cpu" else f", device={one.device!r}"


def _arguments(s: Settings, one: Opened, *more: str) -> str:
    steps = [] if one.card.steps or s.steps is None else [f"steps={s.steps}"]
    return ", ".join([*more, f"w={s.w:g}", *steps])


def _sample(s: Settings, one: Opened, _: Opened | None) -> list[str]:
    times = "" if s.count == 1 else f" * {s.count}"
    if one.takes_text:
        cond = f"encode_prompts(folder, {list(s.prompts)!r}{times}{_device(one)})"
    else:
        cond = f"{one.classes.ids(s.cond or '', '--cond')!r}{times}"
    call = _arguments(s, one, "model", "cond")
    return [f"cond = {cond}", f"x = fewstep.sample({call}, seed={s.seed})"]


def _edit(s: Settings, one: Opened, _: Opened | None) -> list[str]:
    count, lines, given, hole = len(s.images), [], "x", ""
    if s.mask is not None:
        size = one.image_shape[1:]
        lines.append(f"hidden = (read_images({[str(s.mask)]!r}, {(1, *size)}) > 0).float()")
        mask, given, hole = "hidden", "x, mask", " images * (1 - hidden),"
        if one.card.shape[1:] != size:
            small = (1, *one.card.shape[1:])
            mask = f"(read_images({[str(s.mask)]!r}, {small}) > 0).float()"
        lines.append(f"mask = {mask}")
    cond = _conds(one, s.cond, s.prompt, count)
    call = _arguments(s, one, "model", given, "cond", f"strength={s.strength:g}")
    return [
        *lines,
        f"cond = {cond}",
        f"edited = fewstep.{s.task}({call}, seed={s.seed})",
        f"rows = [images,{hole} to_images(model, edited).cpu()]",
    ]


def _transfer(s: Settings, one: Opened, encoder: Opened | None) -> list[str]:
    assert encoder is not None
    count = len(s.images)
    both = one.takes_text
    shown = _conds(encoder, None if both else s.shown, s.shown, count)
    steps = [f"steps={s.steps}"] if _steps(s, one, encoder) else []
    last = ", ".join([f"w={s.w:g}", *([f"w_from={s.w_from:g}"] if s.w_from else []), *steps])
    names: list[str] | list[int]
    if both:
        names, cond = list(s.prompts), f"encode_prompts(folder, [to] * {count}{_device(one)})"
    else:
        names, cond = one.classes.ids(s.cond or "", "--to"), f"[to] * {count}"
    return [
        f"shown = {shown}",
        "rows = [images]",
        f"for to in {names!r}:",
        f"{INDENT}cond = {cond}",
        f"{INDENT}moved = fewstep.transfer(encoder, model, x, shown, cond, {last}).x",
        f"{INDENT}rows.append(to_images(model, moved).cpu())",
    ]


def _interpolate(s: Settings, one: Opened, encoder: Opened | None) -> list[str]:
    assert encoder is not None
    text = one.takes_text
    shown = _conds(encoder, None if text else s.shown, s.shown, 2)
    if s.cond or s.prompts:
        wanted = _conds(one, s.cond, s.prompt, s.count)
    elif text:
        wanted = _conds(one, None, s.shown, s.count)
    else:
        wanted = f"{encoder.classes.ids(s.shown or '', '--cond')[:1]!r} * {s.count}"
    given = f", w={s.w_from:g}" if s.w_from else ""
    given += "" if encoder.card.steps or s.steps is None else f", steps={s.steps}"
    return [
        f"a, b = fewstep.encode(encoder, x, {shown}{given})",
        f"z = fewstep.interpolate(a, b, {s.count})",
        f"cond = {wanted}",
        f"between = fewstep.decode({_arguments(s, one, 'model', 'z', 'cond')})",
        "rows = [to_images(model, between).cpu()]",
    ]


def picture_name(s: Settings, one: Opened) -> str:
    """Return a readable file name, for example student-4-w-2-steps-4-seed-0.png."""
    steps = one.card.steps or s.steps
    task = "" if s.task == "sample" else f"-{s.task}"
    seed = "" if s.task in ENCODED else f"-seed-{s.seed}"
    return f"{Path(one.folder).name}{task}-w-{s.w:g}-steps-{steps}{seed}.png"
