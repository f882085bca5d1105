"""Recipe files and --set: one meaning or one line that says what is wrong, and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.errors import RecipeError
from fewstep.recipes.config import load_recipe

PLAIN = "name: x\ndata: {name: digits}\n"
DEEP = b"[" * 3000 + b"]" * 3000
BOMB = b"".join(
    b"a%d: &a%d [%s]\n" % (n + 1, n + 1, b", ".join([b"*a%d" % n] * 9)) for n in range(30)
)


def written(folder: Path, data: bytes | str) -> str:
    path = folder / "r.yaml"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


@pytest.mark.parametrize(
    "data",
    [
        PLAIN.encode(),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        PLAIN.replace("\n", "\r\n").encode(),
        b"base: &b {name: digits}\n".replace(b"base", b"data") + b"name: x\n",
    ],
)
def test_usual_encodings_are_read(tmp_path: Path, data: bytes) -> None:
    assert load_recipe(written(tmp_path, data)).data.name == "digits"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"name: x\nabout: \xff\xfe\n", "line 2: a recipe must be UTF-8 text"),
        ("about: café\n".encode("latin-1"), "0xe9"),
        (b"name: x\nabout: a\x00b\n", "line 2: .*control character 0x00"),
        (b"name: " + DEEP, "nested more than"),
        (b"name: x\nstages: " + b"[1, " * 100, "nested more than"),
        (b"name: x\nseed: " + b"9" * 5000, "line 2 .*is no int that can be read"),
        (b"name: x\nseed: 1\nseed: 2\n", "line 3 .*'seed' stands in line 2 already"),
        (b"name: x\nteacher: {lr: 1, lr: 2}\n", "'lr' stands in line 2"),
        (b"? [a, b]\n: 1\n", "a key must be a word"),
        (b"name: !!python/object:os.system x\n", "could not determine a constructor"),
        (b"a: &a [*a]\n", "a is not a key"),
        (b"a0: &a0 [x]\n" + BOMB, "at most 100,000 values"),
        (b"name: &a [*a]\n", "name must be a valid string"),
        (b"", "must hold keys and values"),
        (b"x" * (2 << 20), "smaller than 1 MB"),
        (b"name: x\ndata: {name: 5}\n", "data.name .*Put it in quotes"),
        (b"name: x\nteacher: {lr: .nan}\n", "teacher.lr must be a finite number"),
        (b"name: x\nteacher: {lr: .inf}\n", "teacher.lr must be"),
        (b"name: x\nteacher: {updates: yes}\n", "teacher.updates must be a number, got True"),
        (b"name: x\nteacher: {updates: 99999999999}\n", "teacher.updates must be less than"),
        (b"name: x\ndistill: {w: [0, .inf]}\n", "distill.w.1 must be"),
        (b"name: x\nevaluate: {teacher_steps: [4, true]}\n", "evaluate.teacher_steps.1 must be a"),
        (b"name: x\nevaluate: {samples: 1000000000000}\n", "evaluate.samples"),
        (b"name: x\nnetwork: {channels: [80000]}\n", "network.channels.0"),
        (b"name: x\nnetwork: {channels: [0]}\n", "network.channels.0"),
        (b"name: x\nteacher: {betas: [0.9, 1.5]}\n", "teacher.betas.1"),
        (b"name: x\ndistill: {lora: {rank: 1000000}}\n", "distill.lora.rank"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        load_recipe(written(tmp_path, data))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["", "data: {size: 8}\n", "data: {}\n"])
def test_a_recipe_without_data_is_not_the_digits(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml: data\.name is required; .*--set data\.name"):
        load_recipe(written(tmp_path, "name: x\n" + text))
    assert load_recipe(written(tmp_path, "name: x\n" + text), ["data.name=digits"]).name == "x"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("my pics #2", "my pics #2"),
        ("'my pics #2'", "my pics #2"),
        ("a: b", "a: b"),
        ("*.png", "*.png"),
        ("2024-01-01", "2024-01-01"),
        ("@home", "@home"),
    ],
)
def test_a_value_of_set_is_the_whole_text(text: str, value: str) -> None:
    assert load_recipe("digits", [f"data.name={text}"]).data.name == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("[0, 1e0]", (0.0, 1.0)), ("[0,1]", (0.0, 1.0)), (" [ 0 , 1 ] ", (0.0, 1.0))],
)
def test_a_value_of_set_may_be_a_list(text: str, value: tuple[float, ...]) -> None:
    assert load_recipe("digits", [f"evaluate.w={text}"]).evaluate.w == value


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("distill.stages.².updates=5", "no place in a list"),
        ("distill.stages.-1.updates=5", "no place in a list"),
        (f"distill.stages.{'9' * 99}.updates=5", "no place in a list"),
        (f"seed={'9' * 5000}", "is no int"),
        ("evaluate.w=[1", "--set evaluate.w.* is not YAML"),
        ("evaluate.w='1", "--set evaluate.w.* is not YAML"),
        ("=5", "must have the form"),
        ("a..b=5", "must have the form"),
        (".".join("a" * 3000) + "=5", "must have the form"),
        ("name.x=5", "has no keys inside it"),
        ("teacher.lr=-1", "^--set teacher.lr=-1: teacher.lr must be greater than 0"),
        ("evaluate.w=[9]", r"^--set evaluate.w=\[9\]: evaluate.w must lie inside distill.w"),
        ("network.groups=7", "^--set network.groups=7: network"),
        ("distill.lrr=1", "^--set distill.lrr=1: distill.lrr is not a key. Did you mean 'lr'"),
        ("teacher=5", "^--set teacher=5: teacher must be"),
        ("latents.cond=prompts", "^--set latents.cond=prompts: latents.cond must be"),
    ],
)
def test_a_wrong_set_is_blamed_on_set(setting: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        load_recipe("digits", [setting])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert "digits.yaml" not in str(caught.value)


def test_a_wrong_file_is_blamed_on_the_file_whatever_is_set(tmp_path: Path) -> None:
    wrong = written(tmp_path, PLAIN + "teacher: {lr: -1}\n")
    with pytest.raises(RecipeError, match=r"r\.yaml: teacher\.lr must be"):
        load_recipe(wrong, ["seed=3"])
    with pytest.raises(RecipeError, match=r"^--set seed=-3: seed must be"):
        load_recipe(written(tmp_path, PLAIN), ["teacher.lr=1", "seed=-3"])
    assert load_recipe(wrong, ["teacher.lr=1e-3"]).teacher.lr == 1e-3


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        (
            "{parent: teacher, order: 2, stride: 2, substeps: 9}",
            "order, stride, substeps must",
        ),
        (
            "{parent: teacher, direction: encode}",
            "direction must be left out of guidance-distillation, the stage without",
        ),
        ("{parent: teacher, steps: 4, name: stage-one}", "stage-one belongs to the stage without"),
        ("{parent: teacher, steps: 1000000000}", "steps must be less than or equal to 10000"),
        ("{parent: teacher, steps: 4, substeps: 1000000000}", "substeps must be less than"),
        ("{parent: teacher, name: ''}", "stages.0.name: must be a word"),
        ("{parent: teacher, kind: halving}", "stages.0: kind must be one of pretraining, guidance"),
        ("{parent: teacher, kind: pretraining}", "distill: stages must be distilled from a model"),
    ],
)
def test_settings_of_a_stage_that_would_be_ignored_are_refused(stage: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe("digits", [f"distill.stages=[{stage}]"])


def test_the_folder_of_a_run_stands_for_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(PLAIN)
    assert load_recipe(str(tmp_path / "run")).name == "x"
    for bad in ("a" * 5000, "\0", str(tmp_path), "digit"):
        with pytest.raises(RecipeError, match="neither built in") as caught:
            load_recipe(bad)
        assert len(str(caught.value)) < 1000


def test_a_setting_that_is_no_text_is_refused() -> None:
    with pytest.raises(RecipeError, match="--set must be UTF-8 text"):
        load_recipe("digits", ["data.name=a\udcff"])
