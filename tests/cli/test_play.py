"""What `fewstep play` draws, and that its code draws the same."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.cli.conftest import fewstep as run
from tests.models.conftest import TINY, card
from tests.models.pipelines import dit_folder, sd_folder, told_student

import fewstep
from fewstep.cli.play import free_port
from fewstep.cli.web.code import command_line, picture_name, python
from fewstep.cli.web.controls import ClassNames
from fewstep.cli.web.drawing import Settings, columns_of, draw, save
from fewstep.cli.web.models import Models, open_models, w_range
from fewstep.cli.web.sources import Sources
from fewstep.errors import DataError, FolderError, RangeError
from fewstep.models import Model, build_unet

WORDS = {"shown": "a cat", "prompts": ("a dog", "it's a fox")}
CLASSES = {"shown": "3,8", "cond": "5,any"}


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of ten classes, of random weights."""
    folder = tmp_path_factory.mktemp("digits")
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        teacher = Model(build_unet(TINY, (1, 8, 8), 10), card(name="teacher")).eval()
    fewstep.save_model(teacher, folder / "teacher")
    for name, steps, direction in (("student-4", 4, "decode"), ("encoder-4", 4, "encode")):
        fewstep.save_model(told_student(folder / "teacher", steps, direction), folder / name)
    return folder


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of prompts, of latents and random weights."""
    folder = tmp_path_factory.mktemp("words")
    sd_folder(folder / "teacher")
    fewstep.save_model(told_student(folder / "teacher", 4), folder / "student-4")
    return folder


@pytest.fixture
def at(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    folder: Path = request.getfixturevalue(request.param)
    monkeypatch.chdir(tmp_path)
    for model in folder.iterdir():
        Path(model.name).symlink_to(model)
    encoders = [Path("encoder-4")] if Path("encoder-4").exists() else []
    return open_models([Path("student-4"), *encoders], Path("teacher"), None)


def asked(task: str, models: Models) -> Settings:
    """Settings of a task, with its images and its mask in files."""
    one, text = models.first, models.first.takes_text
    s = Settings(task=task, w=2.1, steps=5, seed=3, count=2, **(WORDS if text else CLASSES))
    if task == "sample":
        return s
    x = draw(one, None, replace(s, task="sample", count=1)).rows[0]
    images = tuple(Sources(Path("play")).drawn(x))
    s = replace(s, images=images, strength=0.75, count=4 if task == "interpolate" else 1)
    if task in ("img2img", "interpolate"):
        s = replace(s, prompts=s.prompts[:1], cond=s.cond and "5")
    if task == "inpaint":
        s = replace(s, prompts=s.prompts[:1], cond=s.cond and "5", images=images[:1])
        mask = Image.new("L", Image.open(images[0]).size)
        mask.paste(255, (0, 0, mask.width // 2, mask.height))
        return replace(s, mask=Sources(Path("play")).picture(mask, "mask"))
    return replace(s, w_from=0.5) if task == "transfer" else s


def read(path: str) -> tuple[np.ndarray, dict]:
    """Return the pixels of a picture, and its settings."""
    with Image.open(path) as image:
        return np.asarray(image).astype(int), json.loads(image.info.get("fewstep", "{}"))


TASKS = ["sample", "img2img", "inpaint", "transfer", "interpolate"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("at", ["digits", "words"], indirect=True)
def test_the_code_beside_a_picture_draws_it(at: Models, task: str) -> None:
    s, encoder = asked(task, at), at.named[at.encoders[0]]
    for one in (at.first, at.named["teacher"]):
        drawn = draw(one, encoder, s)
        save(drawn, one, Path("page.png"))
        names = {"out": "command.png", "device": None}
        line = command_line(s, drawn, one, encoder, **names)
        program, *arguments = shlex.split(line.replace("\\\n", ""))
        assert program == "fewstep"
        done = run(*arguments, cwd=Path.cwd())
        assert done.returncode == 0, done.stderr
        code = python(s, drawn, one, encoder, out="python.png", device=None)
        exec(compile(code, "code", "exec"), {})
        page, command, code_ = (read(f"{n}.png") for n in ("page", "command", "python"))
        assert page[1] == command[1]
        assert np.array_equal(page[0], command[0])
        # The same prompt several times in one batch may round differently.
        assert page[0].shape == code_[0].shape
        assert np.abs(page[0] - code_[0]).max() <= (1 if one.takes_text else 0)
