"""A run can be corrected and extended, and nothing that it holds is replaced or mixed up."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from fewstep.cli.main import main
from fewstep.errors import DataError, FolderError, RecipeError
from fewstep.lock import LOCK
from fewstep.recipes.begun import check_folder
from fewstep.recipes.config import load_recipe
from fewstep.recipes.run import Run
from fewstep.recipes.training_data import TrainingData

TINY = {
    "name": "tiny",
    "data": {"name": "digits"},
    "network": {"channels": [8], "groups": 4, "w_dim": 16},
    "teacher": {"updates": 2, "batch_size": 4, "checkpoint_every": 1, "dropout": 0.5},
    "distill": {"w": [0, 4], "batch_size": 4, "updates": 2,
                "stages": [{"parent": "teacher", "steps": 4}, {"parent": "student-4", "steps": 2}]},
    "evaluate": {"w": [1], "samples": 8, "reference_steps": 4, "teacher_steps": []},
}  # fmt: skip
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def run(recipe: Path, out: Path, *settings: str) -> Run:
    return Run(load_recipe(str(recipe), settings), out, "cpu", progress=False)


def make(
    recipe: Path, out: Path, *settings: str, stages: Sequence[str] = (), teacher: bool = True
) -> Run:
    made = run(recipe, out, *settings)
    names = (["teacher"] if teacher else []) + list(stages)
    with made.writing(names):
        if teacher:
            made.train_teacher()
        for stage in made.plan:
            if stage.name in stages:
                made.distill(stage)
    return made


@pytest.fixture(scope="module")
def taught(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has its teacher, and no student."""
    out = tmp_path_factory.mktemp("taught") / "run"
    make(recipe, out)
    return out


@pytest.fixture(scope="module")
def halved(recipe: Path, taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has its teacher and the first of two students."""
    out = tmp_path_factory.mktemp("halved") / "run"
    shutil.copytree(taught, out)
    make(recipe, out, stages=["student-4"], teacher=False)
    return out


@pytest.fixture
def copied(taught: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught, tmp_path / "run"))


def files(folder: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {k: p.read_bytes() for k, p in found.items()}


ANYTHING = (
    "seed=3",
    "network.channels=[16]",
    "teacher.lr=1e-4",
    "distill.w=[0, 2]",
    "data.flip=true",
)


def test_a_folder_that_holds_only_a_recipe_takes_any_change(recipe: Path, tmp_path: Path) -> None:
    run(recipe, tmp_path / "run").prepare()
    run(recipe, tmp_path / "run", *ANYTHING).prepare()
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml")).seed == 3


@pytest.mark.parametrize(
    "setting",
    ["distill.lr=1e-4", "distill.updates=9", "distill.w=[0, 3]", "distill.states=trajectory",
     "distill.stages=[{parent: teacher, steps: 8}]", "evaluate.samples=4", "about=me",
     "teacher.checkpoint_every=7", "distill.lora={rank: 2}"],
)  # fmt: skip
def test_settings_of_stages_that_have_not_begun_may_change(
    recipe: Path, taught: Path, setting: str
) -> None:
    check_folder(run(recipe, taught, setting).workspace)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("teacher.lr=1e-4", r"teacher\.lr = 0\.001 and the recipe now has 0\.0001, and .*teacher "),
        ("teacher.dropout=0.2", r"teacher\.dropout = 0\.5 .* 0\.2"),
        ("teacher.updates=1", r"teacher\.updates = 2 .* 1"),
        ("seed=3", r"seed = 0 .* 3"),
        ("data.flip=true", r"data\.flip = False .* True"),
        ("network.channels=[16]", r"network\.channels = \[8\] .* \[16\]"),
    ],
)
def test_settings_that_the_teacher_depends_on_are_refused(
    recipe: Path, taught: Path, setting: str, says: str
) -> None:
    before = files(taught)
    with pytest.raises(RecipeError, match=says) as caught:
        run(recipe, taught, setting).prepare()
    assert "--out OTHER" in str(caught.value)
    assert f"Use {taught / 'recipe.yaml'} as the recipe" in str(caught.value)
    assert files(taught) == before


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("distill.lr=1e-4", r"distill\.stages \(student-4\)\.lr = 0\.001 .* 0\.0001"),
        ("distill.w=[0, 3]", r"distill\.w = "),
        ("distill.stages.0.substeps=4", r"\(student-4\)\.substeps = 2 .* 4"),
        ("distill.stages=[{parent: teacher, steps: 2}]", "no longer has the stage student-4"),
    ],
)
def test_settings_that_a_student_depends_on_are_refused_with_the_way_on(
    recipe: Path, halved: Path, setting: str, says: str
) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        run(recipe, halved, setting).prepare()
    assert f"--teacher {halved / 'teacher'} --out OTHER" in str(caught.value)


def test_settings_of_the_stage_that_has_not_begun_may_still_change(
    recipe: Path, halved: Path
) -> None:
    check_folder(run(recipe, halved, "distill.stages.1.lr=1e-4").workspace)
    grown = "[{parent: teacher, steps: 4}, {parent: teacher, steps: 8, name: more}]"
    check_folder(run(recipe, halved, f"distill.stages={grown}").workspace)


def test_a_training_that_has_begun_holds_its_settings(recipe: Path, copied: Path) -> None:
    shutil.rmtree(copied / "teacher")  # as if it had been killed after its last checkpoint
    with pytest.raises(RecipeError, match=r"teacher\.lr = 0\.001"):
        run(recipe, copied, "teacher.lr=1e-4").prepare()
    shutil.rmtree(copied / "training")
    run(recipe, copied, "teacher.lr=1e-4").prepare()


def test_a_teacher_without_its_training_folder_holds_its_settings(
    recipe: Path, copied: Path
) -> None:
    shutil.rmtree(copied / "training")
    with pytest.raises(RecipeError, match=r"teacher\.lr = 0\.001"):
        run(recipe, copied, "teacher.lr=1e-4").prepare()
    with pytest.raises(RecipeError, match=r"raised from 2 to 4 .* has a checkpoint"):
        run(recipe, copied, "teacher.updates=4").prepare()


def test_a_finished_teacher_is_trained_on_exactly(recipe: Path, copied: Path) -> None:
    before = load_file(copied / "teacher" / WEIGHTS)
    with pytest.raises(RecipeError, match=r"teacher\.updates = 2 .* 5.*run `fewstep train`"):
        run(recipe, copied, "teacher.updates=5").prepare(["student-4"])
    twin = Path(shutil.copytree(copied, copied.parent / "twin"))
    make(recipe, copied, "teacher.updates=5")
    card = json.loads((copied / "teacher" / "fewstep.json").read_text())
    assert card["training"]["updates"] == 5
    after = load_file(copied / "teacher" / WEIGHTS)
    assert any(not torch.equal(before[k], after[k]) for k in before)
    # Broken off after an update of the extension, and resumed: the same bits.
    extended = run(recipe, twin, "teacher.updates=5")
    batches = TrainingData.batches

    def broken(self: TrainingData, *arguments: object) -> Callable[..., object]:
        inner = batches(self, *arguments)  # type: ignore[arg-type]

        def batch(update: int, part: int, parts: int) -> object:
            if update == 3:
                raise ConnectionError
            return inner(update, part, parts)

        return batch

    extended.prepare()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingData, "batches", broken)
        with pytest.raises(ConnectionError):
            extended.train_teacher()
    with pytest.raises(FolderError, match=r"must have the 5 updates of the recipe, and it has 2"):
        run(recipe, twin, "teacher.updates=5").check(["student-4"])
    make(recipe, twin, "teacher.updates=5")
    again = load_file(twin / "teacher" / WEIGHTS)
    assert all(torch.equal(after[k], again[k]) for k in after)


def test_a_teacher_that_students_were_made_from_is_not_trained_on(
    recipe: Path, halved: Path
) -> None:
    with pytest.raises(RecipeError, match=r"nothing was made from teacher, and .*student-4 was"):
        run(recipe, halved, "teacher.updates=4").prepare()


def test_no_advice_to_train_on_a_teacher_that_students_were_made_from(
    recipe: Path, taught: Path, halved: Path
) -> None:
    for out, advised in ((taught, True), (halved, False)):
        with pytest.raises(RecipeError, match=r"teacher\.updates = 2 .* 9") as caught:
            check_folder(run(recipe, out, "teacher.updates=9").workspace, ["student-2"])
        assert ("run `fewstep train`" in str(caught.value)) == advised


def test_a_change_of_conditions_names_the_key_of_the_user(recipe: Path, taught: Path) -> None:
    with pytest.raises(RecipeError, match=r"latents\.cond = None and the recipe now has 'prompt'"):
        check_folder(run(recipe, taught, "latents={cond: prompt}").workspace)


def test_cache_refuses_the_folder_of_another_run(
    recipe: Path, taught: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ("--set", "latents={cond: prompt}", "--teacher", "elsewhere")
    assert main(["cache", str(recipe), "--out", str(taught), *prompts]) == 1
    assert "latents.cond = None and the recipe now has 'prompt'" in capsys.readouterr().err


def test_another_teacher_for_the_same_run_is_refused(
    recipe: Path, taught: Path, halved: Path, tmp_path: Path
) -> None:
    run(recipe, halved).use_teacher(taught / "teacher")  # the same, from elsewhere
    other = tmp_path / "other"
    make(recipe, other, "seed=5")
    with pytest.raises(FolderError, match=r"another model \(weights\)\. Use --out OTHER"):
        run(recipe, halved).use_teacher(other / "teacher")
    begun = Path(shutil.copytree(taught, tmp_path / "begun"))
    shutil.rmtree(begun / "teacher")
    with pytest.raises(FolderError, match="training a teacher of its own"):
        run(recipe, begun).use_teacher(other / "teacher")


def test_a_teacher_from_elsewhere_leaves_the_settings_of_teachers_free(
    recipe: Path, taught: Path, tmp_path: Path
) -> None:
    brought = run(recipe, tmp_path / "run", "teacher.updates=77", "teacher.lr=1e-4")
    brought.prepare()
    brought.use_teacher(taught / "teacher")
    run(recipe, tmp_path / "run", "teacher.updates=99", "teacher.lr=1e-2").prepare()
    run(recipe, tmp_path / "run", "teacher.updates=99", "teacher.lr=1e-2").check(["student-4"])


def test_a_teacher_from_elsewhere_may_meet_other_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    pets = tmp_path / "pets"
    for k in range(8):
        (pets / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * k, 0, 0)).save(pets / "ab"[k % 2] / f"{k}.png")
    path = tmp_path / "pets.yaml"
    path.write_text(yaml.safe_dump({**TINY, "data": {"name": str(pets), "held_out": 0.0}}))
    first = make(path, tmp_path / "first")
    Image.new("RGB", (8, 8), (0, 99, 0)).save(pets / "a" / "new.png")
    with pytest.raises(DataError, match=r"use --teacher \S+/first/teacher --out OTHER"):
        run(path, first.out).check(["student-4"])
    # What the message advises, with the same recipe.
    other = run(path, tmp_path / "other")
    with other.writing(["student-4"], [first.folder("teacher")]):
        other.use_teacher(first.folder("teacher"))
        other.distill(other.plan.stages[0])
    run(path, other.out).check()
    assert run(path, other.out).workspace.is_made("student-4")


def test_images_that_changed_under_a_run_are_noticed(tmp_path: Path) -> None:
    for k in range(8):
        path = tmp_path / "pets" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * k, 0, 0)).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
        path = tmp_path / "pets.yaml"
        data = {"name": str(tmp_path / "pets"), "held_out": 0.0}
        path.write_text(yaml.safe_dump({**TINY, "data": data}))
        make(path, tmp_path / "run")
        shutil.rmtree(tmp_path / "pets" / "b")
        for k in range(3):
            image = tmp_path / "pets" / "c" / f"{k}.png"
            image.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (0, 9 * k, 99)).save(image)
        import fewstep.data.images as module

        module._cached.cache_clear()
        made = run(path, tmp_path / "run")
        with pytest.raises(DataError, match=r"trained on, .* other images.*--out OTHER"):
            made.check(["student-4"])
        with pytest.raises(DataError, match=r"other images"):
            made.distill(made.plan.stages[0])
        with pytest.raises(DataError, match=r"other images"):
            made.train_teacher()
    assert not (tmp_path / "run" / "student-4").exists()


@pytest.mark.parametrize("name", ["student-4", "teacher", "training/teacher"])
@pytest.mark.parametrize("kind", ["files", "file", "link", "dangling"])
def test_a_folder_of_the_users_is_not_replaced_by_a_model(
    recipe: Path, tmp_path: Path, name: str, kind: str
) -> None:
    if name.startswith("training") and kind in ("files", "file"):
        pytest.skip("checkpoints are written beside other files")
    out, mine = tmp_path / "run", tmp_path / "mine"
    run(recipe, out).prepare()
    (out / name).parent.mkdir(exist_ok=True)
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    if kind == "files":
        shutil.copytree(mine, out / name)
    elif kind == "file":
        (out / name).write_text("mine")
    else:
        (out / name).symlink_to(mine if kind == "link" else tmp_path / "nowhere")
    with pytest.raises(FolderError, match=r"must be"):
        run(recipe, out).check(["teacher"])
    assert (mine / "thesis.txt").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_recipe_or_a_folder_of_ones_own_is_no_run(recipe: Path, tmp_path: Path) -> None:
    shutil.copy(recipe, tmp_path / "recipe.yaml")
    with pytest.raises(FolderError, match="one of your own"):
        run(recipe, tmp_path).prepare()
    assert (tmp_path / "recipe.yaml").read_text() == recipe.read_text()
    (tmp_path / "recipe.yaml").rename(tmp_path / "mine.yaml")
    with pytest.raises(FolderError, match="is not empty"):
        run(recipe, tmp_path).prepare()
    assert [p.name for p in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_run_without_the_mark_in_its_recipe_goes_on(recipe: Path, copied: Path) -> None:
    text = (copied / "recipe.yaml").read_text().split("\n", 1)
    assert text[0].startswith("# ")
    (copied / "recipe.yaml").write_text(text[1])  # as earlier versions wrote it
    run(recipe, copied).prepare()


def test_a_second_process_is_refused(recipe: Path, taught: Path, tmp_path: Path) -> None:
    import fcntl

    out = Path(shutil.copytree(taught, tmp_path / "run"))
    handle = os.open(out / LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    os.write(handle, b'{"process": 77, "since": "2025-01-02 03:04:05+00:00"}')
    with (
        pytest.raises(FolderError, match=r"process 77 \(since 2025-01-02"),
        run(recipe, out).writing(),
    ):
        pass
    os.close(handle)
    with run(recipe, out).writing():
        assert (out / LOCK).is_file()
    assert not (out / LOCK).exists()


def test_commands_take_the_folder_of_a_run_and_print_where_it_is(
    recipe: Path, copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied.parent)
    short = ["--set", "distill.stages=[{parent: teacher, steps: 4, updates: 1}]"]
    for name in ("run/recipe.yaml", "run"):
        assert main(["distill", name, "--device", "cpu", *short]) == 0
        assert "run: run, the folder of this recipe" in capsys.readouterr().err
    assert (copied / "student-4" / "fewstep.json").is_file()
    assert not (copied.parent / "runs").exists()
    # A recipe of one's own that is called recipe.yaml is not taken for a run.
    shutil.copy(recipe, copied.parent / "recipe.yaml")
    assert main(["distill", "recipe.yaml", "--plan"]) == 0
    assert "run:" not in capsys.readouterr().err


def test_a_recipe_without_data_takes_the_built_in_data_of_its_teacher(
    recipe: Path, taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {k: v for k, v in TINY.items() if k != "data"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(settings))
    command = ["distill", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "o"), "--plan"]
    assert main(command) == 1
    assert "data.name is required" in capsys.readouterr().err
    assert main([*command, "--teacher", str(taught / "teacher")]) == 0
    assert "data: digits, as in the teacher's training" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "o")]) == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "name",
    ["/tmp/x", ".", "..", "../x", "a/b", "a..b", "training", "evaluation", "recipe.yaml", "plots",
     "report.html", "Upper", "a b", "-x", ".hidden", "x" * 65, "é", "a\n", "a."],
)  # fmt: skip
def test_the_name_of_a_stage_is_a_name(recipe: Path, tmp_path: Path, name: str) -> None:
    data = {**TINY, "distill": {"stages": [{"parent": "teacher", "steps": 4, "name": name}]}}
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(data))
    made = run(path, tmp_path / "run")
    with pytest.raises(RecipeError, match="the name of a stage must be") as caught:
        made.check(plan=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match="the name of a stage must be"):
        made.prepare()
    with pytest.raises(RecipeError, match="the name of a stage must be"):
        made.folder(name)
    assert not (tmp_path / "run").exists()


def test_a_stage_may_have_a_name_of_its_own(recipe: Path, tmp_path: Path) -> None:
    stage = "distill.stages=[{parent: teacher, steps: 4, name: my-4.v2_x}]"
    run(recipe, tmp_path / "run", stage).check(plan=True)


def test_a_report_ends_beside_files_of_the_users_in_a_students_folder(
    recipe: Path, halved: Path, tmp_path: Path
) -> None:
    from fewstep.folders import load
    from fewstep.measure.cell import Cell
    from fewstep.metrics import Figures
    from fewstep.recipes.study import _keep_figures

    out = Path(shutil.copytree(halved, tmp_path / "run"))
    (out / "student-4" / "notes.txt").write_text("mine")
    lines: list[str] = []
    made = Run(load_recipe(str(recipe)), out, "cpu", lines.append, progress=False)
    figures = Figures("fd_digits", 1.5, rms_to_teacher=0.5, fd_to_teacher=0.25)
    cells = [Cell("student-4", "deterministic", 4, 1.0, 4, figures)]
    model = load(out / "student-4")
    _keep_figures(made, "student-4", "student-4", model, cells)
    assert (out / "student-4" / "notes.txt").read_text() == "mine"
    assert any("notes.txt" in line for line in lines)
    (out / "student-4" / "notes.txt").unlink()
    _keep_figures(made, "student-4", "student-4", load(out / "student-4"), cells)
    card = json.loads((out / "student-4" / "fewstep.json").read_text())
    names = ("fd_digits", "rms_to_teacher", "fd_to_teacher")
    kept = dict(zip((f"{name} at w=1" for name in names), (1.5, 0.5, 0.25), strict=True))
    assert card["figures"] == kept
