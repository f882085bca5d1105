"""What `fewstep play` draws: its code draws the same, and its errors are for people."""

from __future__ import annotations

import json
import shlex
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import fewstep as run
from tests.models.pipelines import dit_folder

from fewstep.cli.play import free_port
from fewstep.cli.web.code import command_line, picture_name, python
from fewstep.cli.web.controls import ClassNames
from fewstep.cli.web.drawing import Settings, columns_of, draw, save
from fewstep.cli.web.models import Models, chosen_steps, open_models, own_steps, w_range
from fewstep.cli.web.page import Page
from fewstep.cli.web.sources import Sources
from fewstep.distill.plan import Stage
from fewstep.errors import FolderError, RangeError
from fewstep.folders import load, save_model
from fewstep.models import student_of

WORDS = {"shown": "a cat", "prompts": ("a dog", "it's a fox")}
CLASSES = {"shown": "3,8", "cond": "5,any"}


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
    return replace(s, w_from=0.5) if task in ("transfer", "interpolate") else s


def read(path: str) -> tuple[np.ndarray, dict]:
    """Return the pixels of a picture, and its settings."""
    with Image.open(path) as image:
        return np.asarray(image).astype(int), json.loads(image.info.get("fewstep", "{}"))


TASKS = ["sample", "img2img", "inpaint", "transfer", "interpolate"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("at", ["digits", "words"], indirect=True)
def test_the_code_beside_a_picture_draws_it(at: Models, task: str) -> None:
    s, encoder = asked(task, at), at.named[at.encoders[0]]
    # Editing takes a while, and a teacher's code differs in its steps alone.
    models = [at.first] if at.first.takes_text and task != "sample" else at.named.values()
    for one in (o for o in models if o is not at.named.get("encoder-4")):
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


def test_a_grid_keeps_a_class_in_its_column() -> None:
    assert [columns_of(kinds, total) for kinds, total in ((1, 8), (2, 8), (3, 6), (10, 20))] == [
        5,
        4,
        3,
        5,
    ]


@pytest.mark.parametrize("at", ["digits"], indirect=True)
def test_models_of_a_page(at: Models, words: Path) -> None:
    assert (at.decoders, at.encoders) == (["student-4"], ["encoder-4", "teacher"])
    assert w_range(at.first) == (-1.0, 14.0)
    assert at.steps[:3] == [1, 2, 3]
    assert picture_name(Settings(w=0.5, seed=7), at.first) == "student-4-w-0.5-steps-4-seed-7.png"
    with pytest.raises(RangeError, match="same classes, or prompts"):
        open_models([Path("student-4"), words / "student-4"], None, None)
    with pytest.raises(RangeError, match="one model must draw, got encoder-4"):
        open_models([Path("encoder-4")], None, None)


def test_a_teacher_may_be_named_among_the_models(digits: Path) -> None:
    teacher, student = digits / "teacher", digits / "student-4"
    models = open_models([teacher, student], teacher, None)
    assert (models.teacher, models.decoders) == ("teacher", ["student-4"])


def test_numbers_of_steps_are_those_that_a_noise_schedule_allows(words: Path) -> None:
    assert open_models([words / "teacher"], None, None).steps[:6] == [1, 2, 4, 5, 8, 10]


def test_an_any_step_student_has_steps_of_its_own(digits: Path, tmp_path: Path) -> None:
    stage = Stage("student-any", "teacher", updates=1, any_steps=[8, 2, 1])
    student = student_of(load(digits / "teacher"), stage, (0.0, 4.0), w_dim=32)
    save_model(student, tmp_path / "student-any")
    models = open_models([tmp_path / "student-any", digits / "student-4"], digits / "teacher", None)
    assert {1, 3, 8, 64} <= set(models.steps)
    named = models.named
    own = own_steps(named["student-any"])
    assert (own, own_steps(named["student-4"]), own_steps(named["teacher"])) == ([1, 2, 8], [], [])
    assert [chosen_steps(own, n) for n in (2, 64, None)] == [2, 8, 8]
    page = Page(models, Sources(tmp_path / "play"), tmp_path)
    c = page.controls
    values = {x: x.value for x in c.all} | {c.own_steps: 2, c.steps: 64}
    for name, steps in (("student-any", 2), ("student-4", 64), ("teacher", 64)):
        assert page._settings(values, named[name]).steps == steps
    _, hidden = page._fitted("student-4", 1.0, 2)
    _, shown = page._fitted("student-any", 1.0, None)
    assert (hidden["visible"], shown["visible"], shown["value"]) == (False, True, 8)


def test_classes_are_written_as_the_command_line_reads_them(tmp_path: Path) -> None:
    folder = dit_folder(tmp_path / "dit")
    names = {"0": "tench, Tinca tinca", "1": "same", "2": "same"}
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"id2label": index["id2label"] | names}))
    classes = ClassNames(open_models([folder], None, None).first)
    assert [value for _, value in classes.choices[:4]] == [
        "tench, Tinca tinca",
        "1",
        "2",
        "thing 3",
    ]
    assert classes.first(classes.joined([v for _, v in classes.choices[:4]]), 3) == (
        "tench, Tinca tinca,1,2"
    )


def test_files_of_the_page_replace_nothing(tmp_path: Path) -> None:
    sources, picture = Sources(tmp_path / "new" / "play"), tmp_path / "a cat.PNG"
    assert not sources.folder.exists()
    Image.new("RGB", (4, 4), "red").save(picture)
    first = sources.upload(str(picture))
    Image.new("RGB", (4, 4), "blue").save(picture)
    second = sources.upload(str(picture))
    assert first != second
    assert first.read_bytes() != second.read_bytes()
    assert sources.upload(str(second)) == second
    assert first.name.startswith("a-cat-")
    assert sources.edited({"background": Image.new("RGB", (4, 4)), "layers": []}) is None
    with pytest.raises(FolderError, match="--out must be a folder that can be written"):
        Sources(picture)


def test_a_folder_with_other_files_is_not_served(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    with pytest.raises(FolderError, match="--out must be empty or hold only images of this page"):
        Sources(tmp_path)


def test_errors_of_the_command_are_one_line(digits: Path, tmp_path: Path) -> None:
    done = run("play", tmp_path / "nothing", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "does not exist" in done.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("play", digits / "student-4", "--port", port, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"got 127.0.0.1 with port {port}" in done.stderr
    assert free_port("127.0.0.1", None) >= 7860
