"""`fewstep evaluate`: what it refuses before it draws, and that it gives the same bytes again."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.pipelines import sd_folder
from tests.recipes.making import features_folder, image_folder, student, teacher

from fewstep.cli.main import main
from fewstep.data import images
from fewstep.errors import RangeError
from fewstep.folders import save_model
from fewstep.measure.evaluate import Evaluation
from fewstep.recipes.compare import Comparison

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_CACHE", str(path / "cache"))
        features_folder(path / "look", image_folder(path / "pets"))
    parent = teacher()
    save_model(parent, path / "teacher")
    student(parent, path / "student-4")
    student(parent, path / "encoder")
    card = json.loads((path / "encoder" / "fewstep.json").read_text())
    card["stage"]["direction"], card["name"] = "encode", "encoder-4"
    (path / "encoder" / "fewstep.json").write_text(json.dumps(card))
    sd_folder(path / "sd")
    return path


@pytest.fixture
def evaluate(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.setenv("FEWSTEP_CACHE", str(home / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*options: object) -> tuple[int, str, str]:
        shared: list[object] = ["--reference", home / "pets", "--features", home / "look",
                                "--samples", 8, "--w", 1]  # fmt: skip
        code = main([str(o) for o in ("evaluate", *shared, *options)])
        return (code, *capsys.readouterr())

    return call


def files(folder: Path) -> dict[str, bytes]:
    found = [p for p in folder.rglob("*") if p.is_file() and p.parent.name not in ("cells",)]
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def test_the_same_command_gives_the_same_bytes(
    home: Path, tmp_path: Path, evaluate: Command
) -> None:
    options = (home / "student-4", "--teacher", home / "teacher", "--reference-steps", 4,
               "--w", "0,1", "--out", "e")  # fmt: skip
    assert evaluate(*options)[0] == 0
    first = files(tmp_path / "e")
    shutil.copytree(tmp_path / "e" / "cells", tmp_path / "cells")
    code, table, err = evaluate(*options)
    assert code == 0
    assert files(tmp_path / "e") == first
    assert "student-4 deterministic" not in err  # nothing was measured again
    for cell in (tmp_path / "e" / "cells").iterdir():
        cell.unlink()
    assert evaluate(*options)[1] == table  # images drawn again, figures and times kept
    assert files(tmp_path / "e") == first
    for cell in (tmp_path / "cells").iterdir():
        assert (tmp_path / "e" / "cells" / cell.name).read_bytes() == cell.read_bytes()
    text = (tmp_path / "e" / "table.md").read_text()
    assert "warning (1): 8 samples per cell are few" in table
    assert "1. 8 samples per cell are few" in text
    assert "fd\\_tiny" not in text
    assert "fd_tiny (1" in text
    with (tmp_path / "e" / "table.csv").open() as file:
        (row, _) = csv.DictReader(file)
    assert set(row) == set(json.loads((tmp_path / "e" / "evaluation.json").read_text())[0])
    assert str(home) not in "".join(p.decode("latin-1") for p in first.values())


def test_another_teacher_is_another_cell(home: Path, tmp_path: Path, evaluate: Command) -> None:
    save_model(teacher(seed=1), tmp_path / "other")

    def paired(folder: Path, out: str) -> tuple[float, str]:
        code, _, err = evaluate(
            home / "student-4", "--teacher", folder, "--reference-steps", 4, "--out", out
        )
        assert code == 0, err
        (row,) = json.loads((tmp_path / out / "evaluation.json").read_text())
        return float(row["rms_to_teacher"]), err

    first, _ = paired(home / "teacher", "e")
    second, err = paired(tmp_path / "other", "e")
    assert "teacher deterministic 4 steps, w = 1" in err
    assert "(measured again: the weights of the model changed)" in err
    assert "(measured again: the teacher changed)" in err
    assert second == paired(tmp_path / "other", "alone")[0] != first


def test_changed_images_are_noticed(home: Path, tmp_path: Path, evaluate: Command) -> None:
    shutil.copytree(home / "pets", tmp_path / "pets")
    options = (home / "student-4", "--reference", tmp_path / "pets", "--out", "e")
    assert evaluate(*options)[0] == 0
    (tmp_path / "pets" / "cat" / "0.png").unlink()
    images._cached.cache_clear()  # as another process would see them
    code, _, err = evaluate(*options)
    assert code == 0
    assert "(measured again: the training images changed)" in err


def test_a_stock_folder_is_a_model(home: Path, tmp_path: Path, evaluate: Command) -> None:
    captions = tmp_path / "pictures"
    captions.mkdir()
    lines = []
    for k, file in enumerate(sorted((home / "pets").rglob("*.png"))[:8]):
        picture = captions / f"{k}.png"
        _enlarged(file, picture)
        lines.append(json.dumps({"file_name": picture.name, "text": f"a thing {'abcdefgh'[k]}"}))
    (captions / "metadata.jsonl").write_text("\n".join(lines))
    code, table, err = evaluate(
        home / "sd", "--reference", captions, "--steps", "2", "--out", "e",
        "--teacher", home / "sd", "--reference-steps", 4,
    )  # fmt: skip
    assert code == 0, err
    assert "variance" in table
    assert "captions and no classes" in table
    (row,) = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert row["fd_tiny"] is not None
    assert row["accuracy"] is None


def test_a_default_that_the_clock_does_not_have_is_replaced(home: Path) -> None:
    said: list[str] = []
    comparison = Comparison((home / "sd",), (1.0,), (2,), None, home / "sd", 256)
    assert comparison.steps_of_teacher(said.append) == 250
    assert said == ["--reference-steps: 250, since 256 does not divide 1000 timesteps"]
    given = replace(comparison, reference_given=True)
    with pytest.raises(RangeError, match=r"--reference-steps: .*256"):
        given.columns(said.append)


def test_steps_of_the_teacher_that_are_given_are_not_replaced(
    home: Path, evaluate: Command
) -> None:
    options = (home / "sd", "--teacher", home / "sd", "--steps", 2, "--reference-steps", 256)
    code, _, message = evaluate(*options, "--out", "e")
    assert (code, message.count("\n")) == (1, 1)
    assert "--reference-steps" in message


def _enlarged(source: Path, target: Path) -> None:
    from PIL import Image

    Image.open(source).resize((16, 16)).save(target)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["student-4", "--steps", "9"], ("--steps must be 4", "got 9")),
        (["student-4", "--sampler", "heun"], ("--sampler must be deterministic", "got heun")),
        (["student-4", "--sampler", "nonsense"], ("--sampler", "'nonsense'", "unipc")),
        (["student-4", "--sampler", "encode"], ("--sampler", "'encode'")),
        (["student-4", "--w", "9"], ("--w must lie in [0, 4]", "got 9")),
        (["student-4", "--samples", "1000000000"], ("--samples",)),
        (["student-4", "--samples", "9000000"], ("--samples must fit on the disk",)),
        (["student-4", "--device", "tpu"], ("device", "'tpu'")),
        (["student-4", "--features", "nowhere"], ("--features", "does not exist")),
        (["student-4", "--reference", "nowhere/x"], ("nowhere/x",)),
        (["student-4", "--teacher", "student-4"], ("--teacher", "any number of steps")),
        (["student-4", "teacher"], ("any number of steps", "--steps 64")),
        (["teacher", "--steps", "0"], ("--steps for teacher", "1 to 100,000")),
        (["teacher", "--steps", "200000000"], ("--steps for teacher", "got 200,000,000")),
        (["teacher", "--steps", "2000", "--sampler", "unipc"], ("1 to 1024", "unipc")),
        (["encoder"], ("encodes images", "roundtrip")),
        (["sd", "--steps", "7"], ("--steps for sd", "does not divide")),
        (["student-4", "sd", "--steps", "4"], ("sd draws (3, 16, 16)",)),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_drawn(
    options: list[str], says: tuple[str, ...], home: Path, tmp_path: Path, evaluate: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Evaluation, "cell", lambda *_, **__: pytest.fail("a cell was drawn"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("fewstep.measure.room.free_disk", lambda _: 10**8)
    arguments = [str(home / o) if (home / o).is_dir() else o for o in options]
    code, _, err = evaluate(*arguments, "--out", "e")
    assert code != 0
    for words in says:
        assert words in err.replace("\n", " "), err
    assert "Traceback" not in err
    assert not (tmp_path / "e" / "results.sqlite").exists()


def test_models_of_one_name_have_rows_of_their_own(
    home: Path, tmp_path: Path, evaluate: Command
) -> None:
    other = student(teacher(seed=1), tmp_path / "student-4")
    code, _, err = evaluate(home / "student-4", other, "--out", "e")
    assert code == 0, err
    rows = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    names = {r["model"] for r in rows}
    assert len(names) == 2
    assert all(n.startswith("student-4 (") for n in names)
    assert evaluate(other, home / "student-4", "--out", "f")[0] == 0
    again = json.loads((tmp_path / "f" / "evaluation.json").read_text())
    key: Any = "model"
    free = {"seconds_per_image"}
    plain = [[{k: v for k, v in r.items() if k not in free} for r in t] for t in (rows, again)]
    assert sorted(plain[0], key=lambda r: r[key]) == sorted(plain[1], key=lambda r: r[key])
    assert evaluate(other, other, "--out", "g")[0] == 0  # given twice, measured once
    assert len(json.loads((tmp_path / "g" / "evaluation.json").read_text())) == 1
    shutil.copytree(other, tmp_path / "copy")
    code, _, err = evaluate(other, tmp_path / "copy", "--out", "h")
    assert code == 1
    assert "same name and weights" in err


def test_a_model_that_gives_no_numbers_gives_no_figures(
    home: Path, tmp_path: Path, evaluate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row says why; no picture is made of it."""

    def lost(*_: object) -> torch.Tensor:
        return torch.full((8, 3, 8, 8), float("nan"))

    monkeypatch.setattr("fewstep.measure.drawing._states", lost)
    code, table, err = evaluate(
        home / "student-4", "--teacher", home / "teacher", "--reference-steps", 4, "--out", "e"
    )
    assert code == 0, err
    (row,) = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    figures = ("fd_tiny", "kd_tiny", "precision", "variance", "rms_to_teacher", "fd_to_teacher")
    assert all(row[k] is None for k in figures)
    assert "8 of 8 samples are infinite or not a number" in table
    assert not list((tmp_path / "e").rglob("*.png"))
    assert not list((tmp_path / "e").rglob("*.svg"))
