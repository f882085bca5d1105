"""Whatever a person gives, the command ends with a code and one line, and does no harm.

Recipes, settings, cards, model folders and data folders are changed at random (mutations.py,
data_changes.py), and a command is run on them in a sandbox (sandbox.py). The cases are the same in
every run; FEWSTEP_FUZZ=5000 draws that many new ones.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import hypothesis
import torch
import yaml
from hypothesis import Phase, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.fuzz import data_changes, mutations
from tests.fuzz.mutations import File, Setting, Tensors, Text, Value
from tests.fuzz.originals import CAPTIONS, PICTURES, RECIPE, World, copied, picture
from tests.fuzz.sandbox import Outcome, run, sandbox

CASES = 300
ASKED = int(os.environ.get("FEWSTEP_FUZZ", CASES))
OUT = ("--out", "out")


def cases(share: float) -> Any:
    """Take a share of all cases."""
    return hypothesis.settings(
        max_examples=max(1, round(share * ASKED)),
        derandomize=ASKED == CASES,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def check(done: Outcome, *wrong: str) -> None:
    """Raise AssertionError with all that a command did wrong; `wrong` is what it must refuse."""
    faults = done.faults()
    if wrong and not done.code:
        faults.append(f"accepted {', '.join(wrong)}")
    shown = f"fewstep {' '.join(done.arguments)}\n{done.err[-2000:]}"
    assert not faults, f"{'; '.join(faults)}\n{shown}"


def write_recipe(work: Path, recipe: dict[str, Any]) -> Path:
    path = work / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def made(world: World, command: str, path: Path) -> tuple[object, ...]:
    """Return a command on a recipe."""
    if command == "plan":
        return ("distill", path, "--plan")
    if command == "distill":
        return ("distill", path, "--teacher", world.models["teacher"], *OUT)
    return ("train", path, *OUT)


@cases(0.2)
@given(
    command=st.sampled_from(("train", "plan", "distill")),
    changes=st.lists(st.one_of(mutations.values, mutations.texts), min_size=1, max_size=2),
)
def test_recipes(world: World, command: str, changes: list[Value | Text]) -> None:
    with sandbox() as work:
        path = write_recipe(work, RECIPE)
        # Values first: text may leave nothing that can be parsed.
        for change in sorted(changes, key=lambda c: isinstance(c, Text)):
            mutations.change_text(path, change)
        check(run(work, *made(world, command, path)))


@cases(0.15)
@given(
    command=st.sampled_from(("train", "plan", "distill")),
    settings=st.lists(mutations.settings_of, min_size=1, max_size=3),
)
def test_settings(world: World, command: str, settings: list[Setting]) -> None:
    with sandbox() as work:
        path = write_recipe(work, RECIPE)
        flags = [word for s in settings for word in ("--set", s.text(RECIPE))]
        check(run(work, *made(world, command, path), *flags))


MODELS = ("teacher", "stage-one", "student-2", "student-2", "sd", "sd-student", "dit")
USES = ("show", "show --json", *["sample"] * 3, "evaluate", "distill")
PARTS = ("unet", "transformer", "vae", "text_encoder")
model_changes: st.SearchStrategy[Any] = st.one_of(
    mutations.values, mutations.texts, mutations.files, mutations.tensors
)


@cases(0.3)
@given(
    name=st.sampled_from(MODELS),
    use=st.sampled_from(USES),
    changes=st.lists(model_changes, min_size=1, max_size=2),
    at=mutations.place,
)
def test_models(world: World, name: str, use: str, changes: list[Any], at: int) -> None:
    with sandbox() as work:
        folder = copied(world.models[name], work / "model")
        wrong = [w for w in (changed(folder, change, at) for change in changes) if w]
        done = run(work, *used(work, name, use))
        check(done, *(wrong if not use.startswith("show") else ()))


def changed(folder: Path, change: Any, at: int) -> str:
    """Change a model folder; return what no command that reads its weights may accept."""
    if isinstance(change, File):
        change.apply(folder)
        return ""
    try:
        if isinstance(change, Tensors):
            return _changed_weights(folder, change, at)
        _changed_text(folder, change, at)
    except (OSError, ValueError, RuntimeError):
        pass  # an earlier change has left nothing there that can be read
    return ""


def _changed_weights(folder: Path, change: Tensors, at: int) -> str:
    found = sorted(p for part in PARTS for p in (folder / part).glob("*.safetensors"))
    path = found[at % len(found)] if found else folder / "no weights"
    change.apply(path)
    network = path.parent.name in ("unet", "transformer")
    if network and change.signed:
        mutations.sign(folder, path)
    certain = change.how in mutations.WRONG if network else change.how in ("drop", "rename")
    return f"{path.parent.name}: {change.how}" if certain else ""


def _changed_text(folder: Path, change: Value | Text, at: int) -> None:
    found = sorted(p for p in folder.rglob("*.json") if p.stat().st_size < 20_000)
    card = [p for p in found if p.name == "fewstep.json"]
    chosen = card if card and at % 2 else found
    if chosen:
        mutations.change_text(chosen[at % len(chosen)], change)


def used(work: Path, name: str, use: str) -> tuple[object, ...]:
    """Return a command that uses the changed folder `model`."""
    text = name.startswith("sd")
    if use.startswith("show"):
        return (*use.split(), "model")
    if use == "sample":
        what = ("--prompt", "a cat") if text else ("--cond", "0")
        steps = () if "student" in name else ("--steps", 1)
        return ("sample", "model", *what, *steps, "--scale", 1, "--out", "out/sheet.png")
    if use == "evaluate":
        return ("evaluate", "model", "--w", 0, "--steps", 1, "--samples", 4, *OUT)
    path = write_recipe(work, CAPTIONS if text else RECIPE)
    return ("distill", path, "--teacher", "model", *OUT)


READERS = ("train", "train", "train", "skip", "stream", "features", "img2img")


@cases(0.2)
@given(
    kind=st.sampled_from(("classes", "classes", "jsonl", "csv", "captions", "parquet")),
    use=st.sampled_from(READERS),
    changes=st.lists(data_changes.changes, min_size=1, max_size=3),
)
def test_data(world: World, kind: str, use: str, changes: list[data_changes.Change]) -> None:
    with sandbox() as work:
        folder = copied(world.data[kind], work / "data")
        for change in changes:
            change.apply(folder)
        check(run(work, *read(world, work, use)))


def read(world: World, work: Path, use: str) -> tuple[object, ...]:
    """Return a command that reads the changed folder `data`."""
    if use == "img2img":
        shared = ("--strength", "0.5", "--scale", 1, "--out", "out/sheet.png")
        model = world.models["student-2"]
        return ("img2img", model, "--image", "data", "--cond", "any", *shared)
    if use == "features":
        shared = ("--size", 8, "--channels", 1, "--held-out", 0.2, "--epochs", 1)
        return ("features", "train", "data", *OUT, *shared)
    path = write_recipe(work, PICTURES)
    more = {"skip": ("--set", "data.skip_bad=true"), "stream": ("--set", "data.stream=true")}
    return ("train", path, *more.get(use, ()), *OUT)


OPTIONS = (
    *("--cond", "--w", "--steps", "--sampler", "--seed", "--count", "--columns", "--scale"),
    *("--device", "--prompt", "--prompts", "--image", "--strength", "--mask", "--out", "--samples"),
    *("--reference", "--features", "--teacher", "--reference-steps", "--guidance-scale", "--from"),
    *("--to", "--to-prompt", "--batch-size", "--x"),
)
GIVEN = (
    *("0,", ",", "0-", "-1", "9-0", "0-99999999999", "cat", "any", "0,1,2,3", "1,2.5", "1;2", "½"),
    *("model", "data", "data/cat/0.png", "recipe.yaml", "notes.txt", "x.jpg", "x/y.png", "out"),
)
DRAWING = (
    ("sample", "model"),
    ("sample", "model", "--cond", "0"),
    ("evaluate", "model", "--samples", "4", "--w", "0"),
    ("img2img", "model", "--image", "data/cat/0.png", "--cond", "1"),
    ("inpaint", "model", "--image", "data/cat/0.png", "--cond", "1", "--mask", "mask.png"),
    ("encode", "model", "--image", "data/cat/0.png", "--cond", "1"),
    ("decode", "model", "noise.safetensors"),
)


@cases(0.1)
@given(
    name=st.sampled_from(("teacher", "student-2", "sd-student")),
    command=st.sampled_from(DRAWING),
    options=st.lists(
        st.tuples(st.sampled_from(OPTIONS), st.sampled_from((*GIVEN, *mutations.ODD))),
        min_size=1,
        max_size=2,
    ),
)
def test_options(
    world: World, name: str, command: tuple[str, ...], options: list[tuple[str, Any]]
) -> None:
    with sandbox() as work:
        copied(world.models[name], work / "model")
        copied(world.data["classes"], work / "data")
        write_recipe(work, RECIPE)
        (work / "notes.txt").write_text("a cat\n\na dog\n")
        (work / "mask.png").write_bytes(picture(3))
        save_file({"z": torch.zeros(1, 1, 8, 8)}, work / "noise.safetensors")
        flags = [str(word).replace("\x00", "") for pair in options for word in pair]
        # The last --out holds, and what an odd one names may be written.
        check(run(work, *command, *flags, "--out", "out"))


@cases(0.05)
@given(
    kind=st.sampled_from(("prompts", "noise", "mask")),
    change=st.one_of(mutations.texts, mutations.files, mutations.tensors),
)
def test_files(world: World, kind: str, change: Any) -> None:
    with sandbox() as work:
        (work / "given").mkdir()
        path = (
            work / "given" / {"prompts": "a.txt", "noise": "a.safetensors", "mask": "a.png"}[kind]
        )
        if kind == "noise":
            save_file({"z": torch.zeros(1, 1, 8, 8)}, path, {"fewstep": '{"cond": "3"}'})
        else:
            path.write_bytes(b"a cat\na dog\n" if kind == "prompts" else picture(1))
        if isinstance(change, Text):
            path.write_bytes(change.apply(path.read_bytes()))
        elif isinstance(change, File):
            change.apply(path.parent)
        elif kind == "noise":
            change.apply(path)
        (work / "a.png").write_bytes(picture(2))
        student, text = world.models["student-2"], world.models["sd-student"]
        command = {
            "prompts": ("sample", text, "--prompts", path),
            "noise": ("decode", student, path),
            "mask": ("inpaint", student, "--image", "a.png", "--cond", 1, "--mask", path),
        }[kind]
        check(run(work, *command, "--scale", 1, "--out", "out/sheet.png"))
